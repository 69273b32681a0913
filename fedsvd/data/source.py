"""What any file or data set is to its reader: columns, and rows by column."""

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, final

Rows = Iterator[tuple[int, dict[str, Any]]]


@final
@dataclass(frozen=True)
class Source:
    """One file, or one split of a data set.

    `rows(columns)` yields (number from 1, values by column) of every row, with these columns at
    least; the number counts what `unit` says, lines or rows. `classes` holds the names 0..K-1 of
    columns that the source itself declares to hold indices of classes.
    """

    place: str
    columns: tuple[str, ...]
    rows: Callable[[Sequence[str]], Rows]
    unit: str = "line"
    classes: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
