"""Tables, figures and reports of runs that are finished; as a function `results`."""

from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING

from fedsvd.callables import make_callable
from fedsvd.results.collect import Finished, read_run

if TYPE_CHECKING:
    from pandas import DataFrame

__all__ = ["Finished", "read_run", "results"]


def results(folders: str | Path | Iterable[str | Path], *, keys: Sequence[str] = ()) -> "DataFrame":
    """Return a row for each finished run at any depth below one folder or several.

    Columns: `folder`; each setting whose value is not the same in all runs, and the settings that
    `keys` names, by dotted key; the figures of `summary.json` that are a number, a text or nothing.
    `attrs["unfinished"]` lists the folders of unfinished runs. Raises InputError if a folder holds no
    finished run.
    """
    from fedsvd.results.table import table

    given = [folders] if isinstance(folders, (str, Path)) else list(folders)
    return table([Path(folder) for folder in given], keys)


make_callable(__name__)
