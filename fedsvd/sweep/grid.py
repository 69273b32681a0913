"""A sweep as a function's call."""

import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsvd.calling import called
from fedsvd.command import job, run_hydra
from fedsvd.errors import InputError, TrialsFailed
from fedsvd.overrides import as_overrides, choices, override
from fedsvd.results import results

if TYPE_CHECKING:
    from pandas import DataFrame


def run_grid(
    overrides: Sequence[str], grid: Mapping[str, Any], folder: str | Path | None, show: bool,
    values: Mapping[str, Any],
) -> "DataFrame":  # fmt: skip
    """Run the trials and return their table; see `fedsvd.sweep`."""
    given = as_overrides(overrides, values)
    for text in given:
        if text.startswith(("hydra.sweep.dir=", "hydra.run.dir=")):
            raise InputError(f"{text.partition('=')[0]}: give folder= in its place")
    if not isinstance(grid, Mapping) or not grid:
        raise InputError("grid: must be a dictionary with a list of values for each key")
    trials = [choices(key, each) for key, each in grid.items()]
    place = _new() if folder is None else Path(folder)
    try:
        with called(show):
            run_hydra(["-m", *given, *trials, override("hydra.sweep.dir", place)], job)
    except TrialsFailed as error:
        error.add_note(f"finished trials: fedsvd.results({str(place)!r})")
        raise
    found = results(place)
    found.attrs["folder"] = str(place)
    return found


def _new() -> Path:
    """Return a folder for a sweep that begins now, named as the configured default, yet unused."""
    place = Path(time.strftime("multirun/%Y-%m-%d/%H-%M-%S"))
    number, free = 1, place
    while free.exists():
        number += 1
        free = place.with_name(f"{place.name}-{number}")
    return free
