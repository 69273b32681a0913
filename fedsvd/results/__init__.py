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

    The columns are `folder`, each setting whose value is not the same in all runs, by dotted key, and
    the figures of `summary.json` that are a number, a text or nothing. `attrs["unfinished"]` lists
    the folders of unfinished runs.

    Args:
        folders: one folder or several.
        keys: dotted keys of further settings that get a column.

    Raises:
        InputError: a folder holds no finished run.
    """
    from fedsvd.results.table import table

    given = [folders] if isinstance(folders, (str, Path)) else list(folders)
    return table([Path(folder) for folder in given], keys)


make_callable(__name__)
