"""The one check of rows, whatever they were read from."""

import math
import re
from bisect import bisect_right
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from fedsvd.data.conversation import conversation, short
from fedsvd.data.endings import written
from fedsvd.data.source import Source
from fedsvd.errors import InputError, nearest
from fedsvd.settings import DataSettings

WHOLE = re.compile(r"(\d+)\.0+")  # how a column of whole numbers is written that was once of floats


@dataclass(frozen=True)
class Table:
    """Texts (tuples of one or two strings) and labels (as written) of one part.

    `label_names` are the classes that the source itself declares; a label is then the index of one.
    `declares` says that these come with a published schema, and not from a file of somebody's rows.
    """

    texts: list[tuple[str, ...]]
    labels: list[str]
    label_names: tuple[str, ...] | None = None
    ids: list[str] = field(default_factory=list)  # with data.id
    owners: list[str] = field(default_factory=list)  # with data.client: whose each row is
    numbers: list[int] = field(default_factory=list)  # of each row in its file
    files: list[tuple[int, str]] = field(default_factory=list)  # first row; "FILE: line", or row
    declares: bool = True

    def where(self, row: int) -> str:
        """Return the file and line of a row, for messages."""
        if not self.files:
            return f"row {row + 1}"
        at = bisect_right(self.files, row, key=lambda f: f[0]) - 1
        return f"{self.files[at][1]} {self.numbers[row]}"

    def label(self, row: int) -> str:
        """Return the label of a row as a person would say it."""
        if self.label_names is None:
            return str(self.labels[row])
        return self.label_names[int(self.labels[row])]


def read_table(
    sources: Iterable[Source], settings: DataSettings, declares: bool,
    holders: Sequence[str] | None = None,
) -> Table:  # fmt: skip
    """Return the rows of one or more sources that together are one part.

    `holders` says whose each source is, where these are clients' own.
    Rows that `data.filter` drops are not looked at. Raises InputError that names file, line, column
    and what was found: a missing column, no text, no label, a list of labels, a number with a
    fraction, an index without a class, no id, no rows.
    """
    table, place, names = None, "", None
    for which, source in enumerate(sources):
        wanted = _wanted(source, settings)
        classes = None if settings.label is None else source.classes.get(settings.label)
        if table is None:
            table, place, names = Table([], [], classes, declares=declares), source.place, classes
        elif classes != names:
            raise InputError(f"{source.place}: its classes are not those of {place}")
        table.files.append((len(table.texts), f"{source.place}: {source.unit}"))
        for number, row in _kept(source, wanted, settings):
            where = f"{source.place}: {source.unit} {number}"
            table.texts.append(tuple(_read(row[c], c, where, settings) for c in settings.text))
            table.labels.append(_label(row, classes, settings, where))
            table.numbers.append(number)
            if settings.id is not None:
                table.ids.append(_id(row[settings.id], settings.id, where, "data.id"))
            if settings.client is not None:
                owner = _id(row[settings.client], settings.client, where, "partition.column")
                table.owners.append(owner)
        if holders is not None:
            table.owners.extend([holders[which]] * (len(table.texts) - len(table.owners)))
    if table is None or not table.texts:
        raise InputError(f"{place}: no rows" + (" after data.filter" if settings.filter else ""))
    return table


def _wanted(source: Source, settings: DataSettings) -> list[tuple[str, str]]:
    """Return the columns that are needed, each with the key that asks for it."""
    keys = {settings.messages: "data.messages", settings.endings: "data.endings"}
    wanted = [(keys.get(c, "data.text"), c) for c in settings.text]
    wanted += [("data.label", settings.label)] if settings.label is not None else []
    wanted += [("data.filter", c) for c in settings.filter or {}]
    wanted += [("data.id", settings.id)] if settings.id is not None else []
    wanted += [("partition.column", settings.client)] if settings.client is not None else []
    for key, column in wanted:
        if column not in source.columns:
            near = nearest(column, source.columns)
            meant = f" (did you mean {near!r}?)" if near else ""
            raise InputError(
                f"{source.place}: no column {column!r} ({key}){meant}; "
                f"it has {', '.join(source.columns)}{_delimiter(source.columns)}"
            )
    return wanted


def _delimiter(columns: Sequence[str]) -> str:
    found = next((d for d in ";\t|" if len(columns) == 1 and d in columns[0]), None)
    return f" (separated by {found!r}? .csv takes commas, .tsv tabs)" if found else ""


def _kept(
    source: Source, wanted: Sequence[tuple[str, str]], settings: DataSettings
) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the rows that have all columns and pass `data.filter`."""
    filters = settings.filter or {}
    for number, row in source.rows([column for _, column in wanted]):
        for key, column in wanted:
            if column not in row:
                raise InputError(f"{source.place}: {source.unit} {number}: no {column!r} ({key})")
        if all(_among(row[c], v, source.classes.get(c)) for c, v in filters.items()):
            yield number, row


def _among(value: Any, told: Any, classes: Sequence[str] | None) -> bool:
    """Return whether a value is the one, or one of those, that `data.filter` says."""
    several = told if isinstance(told, (list, tuple)) else [told]
    return any(_is(value, str(one), classes) for one in several)


def _is(value: Any, told: str, classes: Sequence[str] | None) -> bool:
    """Return whether a value is what `data.filter` says: as written, or a class by its name."""
    if isinstance(value, bool):
        return told.casefold() == str(value).casefold()
    if isinstance(value, int) and classes is not None and 0 <= value < len(classes):
        return told in (str(value), classes[value])
    if isinstance(value, float) and value.is_integer():
        return told in (str(value), str(int(value)))
    return str(value) == told


def _read(value: Any, column: str, where: str, settings: DataSettings) -> str:
    if column == settings.messages:
        return conversation(value, f"{where}: column {column!r}")
    if column == settings.endings:
        return written(value, f"{where}: column {column!r}")
    return _text(value, column, where)


def _text(value: Any, column: str, where: str) -> str:
    if not isinstance(value, str) or not value.strip():
        raise InputError(f"{where}: column {column!r} holds no text but {short(value)}")
    if not value.isascii():
        try:
            value.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(
                f"{where}: column {column!r} holds half a character, "
                f"{value[error.start]!a}, which no tokeniser reads"
            ) from error
    return value


def _label(
    row: Mapping[str, Any], classes: Sequence[str] | None, settings: DataSettings, where: str
) -> str:
    """Return a label as text, whole numbers without a point; InputError if it is no label.

    It is "" where rows have none.
    """
    if settings.label is None:
        return ""
    value = row[settings.label]
    declared: Sequence[str] = settings.labels or ()
    what = f"{where}: column {settings.label!r} holds"
    if isinstance(value, (list, tuple, dict)):
        raise InputError(
            f"{what} no label but {short(value)}; a row has one label, several at once are not "
            "supported"
        )
    if isinstance(value, float) and math.isfinite(value) and repr(value) not in declared:
        if not value.is_integer():
            raise InputError(
                f"{what} no label but {value!r}; a label is a name or a whole number, regression is "
                "not supported"
            )
        value = int(value)
    if not isinstance(value, (str, int)) and repr(value) not in declared:
        missing = "; the label is missing" if value is None or value != value else ""
        raise InputError(f"{what} no label but {short(value)}{missing}")
    text = str(value)
    if not text.strip():
        raise InputError(f"{what} no label but {text!r}; the label is missing")
    if classes is not None and not (type(value) is int and 0 <= value < len(classes)):
        hint = "; -1 stands for no label" if value == -1 else ""
        raise InputError(
            f"{what} no label but {short(value)}; its schema has the classes 0 to "
            f"{len(classes) - 1}{hint}"
        )
    whole = WHOLE.fullmatch(text)
    return whole[1] if whole and text.isascii() and text not in declared else text


def _id(value: Any, column: str, where: str, key: str) -> str:
    if value is None or value != value or str(value).strip() == "":
        raise InputError(f"{where}: column {column!r} holds no id but {short(value)} ({key})")
    return str(value)
