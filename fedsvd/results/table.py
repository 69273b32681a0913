"""Finished runs as a table of pandas, a row each."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from pandas import DataFrame

from fedsvd.errors import InputError
from fedsvd.results.collect import APART, Finished, find_runs


def table(folders: Sequence[Path], keys: Sequence[str] = ()) -> DataFrame:
    """Return a row for each finished run; see `fedsvd.results`."""
    if not folders:
        raise InputError("folders: there is none")
    runs: dict[Path, Finished] = {}
    unfinished: list[str] = []
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: is not a folder")
        found, left = find_runs(folder)
        runs |= {run.folder.resolve(): run for run in found}
        unfinished += map(str, left)
    shown = [*_varied(list(runs.values())), *keys]
    for key in keys:
        if not any(key in run.config for run in runs.values()):
            raise InputError(f"keys: no run has a setting {key!r}")
    rows = []
    for run in runs.values():
        row: dict[str, Any] = {"folder": str(run.folder), "seed": run.seed}
        row |= {key: run.config.get(key) for key in shown}
        row |= {key: v for key, v in run.summary.items() if not isinstance(v, (dict, list))}
        rows.append(row)
    made = DataFrame(rows)
    made.attrs["unfinished"] = list(dict.fromkeys(unfinished))
    return made


def _varied(runs: Sequence[Finished]) -> list[str]:
    """Return the settings that tell the runs from each other, without what changes no result."""
    every = dict.fromkeys(key for run in runs for key in run.config if not key.startswith(APART))
    return [k for k in every if len({json.dumps(run.config.get(k)) for run in runs}) > 1]
