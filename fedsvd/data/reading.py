"""Whether labels in the data are names or indices: for the whole column, never row by row.

With the labels 1 to 5 a "1" is the first one by its name and the second one by its index. Which of
them it is follows from `data.label_type`, from the classes that the source declares, or, for "auto":
- where rows may decide, from the column over all parts: the way that makes a label of every row; that
  both do, and differ, is an error;
- under privacy and at nodes from `data.labels` alone: they are names if some name is a number that is
  the index of another one. Otherwise no text has two readings.
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from typing import final

from fedsvd.data.conversation import short
from fedsvd.data.labels import (
    Places,
    by_index,
    by_name,
    first_places,
    label_index,
    listed,
    two_ways,
)  # fmt: skip
from fedsvd.data.rows import Table
from fedsvd.errors import InputError
from fedsvd.settings import DataSettings

SETTLE = "say which with data.label_type=names or data.label_type=indices"
Reader = Callable[[str], int | None]


@final
@dataclass(frozen=True)
class Reading:
    """The index of each label as it is written, by part; None for one that is not in the set."""

    index: Mapping[str, Mapping[str, int | None]]
    names: tuple[str, ...]
    settings: DataSettings

    def refusal(self, table: Table, row: int) -> InputError:
        """Return the error for a row whose label is not in the set."""
        label, names = table.label(row), self.names
        alike = [n for n in names if n.casefold() == label.strip().casefold()]
        hint = f" (did you mean {alike[0]!r}? blanks and case count)" if alike else ""
        if not hint and self.settings.label_type != "indices" and two_ways(names):
            hint = "; they are read as names, for indices set data.label_type=indices"
        if self.settings.label_type == "indices":
            hint = f"; with data.label_type=indices it must be 0 to {len(names) - 1}"
        return InputError(
            f"{table.where(row)}: label {short(label)} is not one of {listed(names)}{hint} "
            f"(column {self.settings.label!r})"
        )


def read_labels(
    settings: DataSettings, tables: Mapping[str, Table], names: tuple[str, ...], alone: bool,
    lenient: bool,
) -> Reading:  # fmt: skip
    """Return how the labels of all parts are read.

    `alone`: no row decides, as under privacy and where every process has other rows. `lenient`: a
    column that mixes names and indices is no error, each of its labels has one reading all the same.
    Where rows have no labels they are all in one class. Raises InputError for such a mixture, a
    column that can be read in two ways, and classes of the source's own that are not among
    `data.labels`.
    """
    if settings.label is None:
        return Reading({part: {"": 0} for part in tables}, names, settings)
    plain = {part: t for part, t in tables.items() if not _typed(t, settings)}
    if settings.labels is None and len(plain) == len(tables):
        settings = replace(settings, label_type="names")  # they are what was found
    reader = _choose(settings, first_places(plain.values()), names, alone, lenient)
    index = {}
    for part, table in tables.items():
        read = reader if part in plain else _by_class(table, names, settings, reader, lenient)
        index[part] = {label: read(label) for label in {*map(str, table.labels)}}
    return Reading(index, names, settings)


def _typed(table: Table, settings: DataSettings) -> bool:
    """Return whether the source says what its labels are called, and not just 0, 1, 2."""
    names = table.label_names
    return names is not None and names != tuple(map(str, range(len(names))))


def _by_class(
    table: Table, names: tuple[str, ...], settings: DataSettings, plain: Reader, lenient: bool
) -> Reader:  # fmt: skip
    """Return the reader of indices of the source's own classes.

    Where one row must not stop the rest, the names of classes are read as a column of texts is: the
    schema may have been made from the rows.
    """
    classes = table.label_names
    assert classes is not None
    if settings.label_type == "indices":
        return lambda label: by_index(label, names)
    if lenient:
        return lambda label: plain(classes[int(label)])
    if settings.label_type == "auto" and not set(classes) <= set(names):
        raise InputError(
            f"data.labels: {listed(names)} are not what the source calls its classes: "
            f"{listed(classes)}; use these, or set data.label_type=indices to give them other names "
            "in their order, or data.label_type=names to do without the others"
        )
    return lambda label: by_name(classes[int(label)], names)


def _choose(
    settings: DataSettings, places: Places, names: tuple[str, ...], alone: bool, lenient: bool
) -> Reader:
    """Return the reader of a column whose source does not say what its labels are."""
    kind = settings.label_type
    if kind == "auto" and two_ways(names):
        kind = "names" if alone else _only_way(settings, places, names)
    elif kind == "auto" and not lenient:
        _check_mixed(settings, places, names)
    if kind == "auto":
        return lambda label: label_index(label, names)
    reader = by_name if kind == "names" else by_index
    return lambda label: reader(label, names)


def _only_way(settings: DataSettings, places: Places, names: tuple[str, ...]) -> str:
    """Return "names" or "indices", whichever makes sense of every row."""
    as_name = {label: by_name(label, names) for label in places}
    as_index = {label: by_index(label, names) for label in places}
    if None in as_name.values():
        if None not in as_index.values():
            return "indices"
        _check_mixed(settings, places, names)
    elif None not in as_index.values() and as_name != as_index:
        label = next(x for x in places if as_name[x] != as_index[x])
        table, row = places[label]
        raise InputError(
            f"{table.where(row)}: label {label!r} of column {settings.label!r} is the name of one of "
            f"data.labels ({listed(names)}) and the index of {names[int(label)]!r}, as all labels "
            f"here can be both; {SETTLE}"
        )
    return "names"


def _check_mixed(settings: DataSettings, places: Places, names: tuple[str, ...]) -> None:
    """Raise InputError if one row's label can only be a name and another's only an index."""
    name = next(
        (x for x in places if by_index(x, names) is None and by_name(x, names) is not None), ""
    )
    index = next(
        (x for x in places if by_name(x, names) is None and by_index(x, names) is not None), ""
    )
    if name and index:
        (first, i), (second, j) = places[name], places[index]
        raise InputError(
            f"{first.where(i)}: column {settings.label!r} holds the name {short(name)}, and in "
            f"{second.where(j)} the index {index!r}; it must hold one or the other (data.labels: "
            f"{listed(names)})"
        )
