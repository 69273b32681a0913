"""Sweeps: trials one after another, or in processes of a Ray cluster; as a function `sweep`."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsvd.callables import make_callable

if TYPE_CHECKING:
    from pandas import DataFrame


def sweep(
    overrides: str | Sequence[str],
    grid: Mapping[str, Any],
    *,
    folder: str | Path | None = None,
    show: bool = True,
    **values: Any,
) -> "DataFrame":
    """Run every combination of the grid's values and return `fedsvd.results` of the sweep's folder.

    It is the sweep of `python -m fedsvd.run -m`, with its launchers and sweepers:

        fedsvd.sweep("+experiment=quickstart", {"seed": range(3), "adapter.rank": [4, 8]})
        fedsvd.sweep("+experiment=dp_eps1", {"privacy.epsilon": [1, 3]}, **{"hydra/launcher": "ray"})

    Args:
        overrides: a text, or several, as for `fedsvd.run`.
        grid: a list of values for each key, or a text of Hydra's own such as "interval(0.1, 1)".
        folder: `hydra.sweep.dir`, by default multirun/DATE/TIME. It is in `attrs["folder"]` of the
            result.
        show: as for `fedsvd.run`.
        values: as for `fedsvd.run`.

    Raises:
        TrialsFailed: a trial failed. It is raised after the last trial, with the folder in a note.
        InputError: as for `fedsvd.run`.
        RunError: as for `fedsvd.run`.
    """
    from fedsvd.sweep.grid import run_grid

    given = [overrides] if isinstance(overrides, str) else list(overrides)
    return run_grid(given, grid, folder, show, values)


make_callable(__name__)
