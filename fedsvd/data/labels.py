"""The set of labels: declared, or as the source publishes it, or, without privacy, found in the rows.

Under privacy the rows have no say in it: a class that one row could create would show in the shape of
the head, in its name in the run folder and in every message.
"""

import math
import re
import unicodedata
from collections.abc import Iterable, Mapping, Sequence

from fedsvd.data.conversation import short
from fedsvd.data.endings import endings_of
from fedsvd.data.rows import Table
from fedsvd.errors import InputError
from fedsvd.settings import DataSettings

MOST_LABELS = 1000  # found in data; more must be named in data.labels
NUMBER = re.compile(r"[+-]?(\d+\.?\d*|\.\d+)([eE][+-]?\d{1,3})?", re.ASCII)
Places = Mapping[str, tuple[Table, int]]  # of each label, where it stands first


def label_names(
    settings: DataSettings, tables: Mapping[str, Table], source: str, private: bool
) -> tuple[str, ...]:
    """Return the names of the labels 0..K-1.

    None where rows have no labels. They are `data.labels`, or the classes in the schema of the
    source, or those of the rows. Under privacy only a hub's schema is a declaration: that of a file
    may have been made from its rows.
    Raises InputError for what is not declared under privacy, for fewer than 2 or more than
    `MOST_LABELS`, and for labels of rows that look like one another, or like no classes.
    """
    if settings.label is None:
        return ()
    if settings.labels is not None:
        return settings.labels
    typed = {part: t for part, t in tables.items() if t.label_names is not None}
    names = _classes(typed, source)
    if names is not None and (not private or all(t.declares for t in typed.values())):
        return names
    if private:
        known = "negative,positive" if names is None else ",".join(names[:20])
        raise InputError(
            "data.labels: needed under privacy, as the number and names of classes must not depend "
            "on private rows; declare them from what is publicly known, in the order of indices: "
            f"'data.labels=[{known}]'"
        )
    if settings.label_type == "indices":
        raise InputError(
            "data.labels: needed with data.label_type=indices, to say what they stand for"
        )
    return _found(settings, first_places(tables.values()), source)


def ending_names(
    settings: DataSettings, tables: Mapping[str, Table], private: bool
) -> tuple[str, ...]:
    """Return what the labels are called that say which ending is right, in the endings' order.

    They are `data.labels`, or 0 to K - 1 for K endings, which every row of every part must have.
    Raises InputError that names file and line of a row with another number, and under privacy where
    the number is not declared.
    """
    names, first = settings.labels, None
    if names is None and private:
        raise InputError(
            "data.labels: needed under privacy with task=choice, as how many endings a row has must "
            "not depend on private rows; declare what its label can be: 'data.labels=[0,1,2,3]'"
        )
    for table in tables.values():
        for row, texts in enumerate(table.texts):
            number = len(endings_of(texts[1]))
            if names is None:
                names, first = tuple(map(str, range(number))), table.where(row)
            if number != len(names):
                declared = f"data.labels has {len(names)}"
                other = declared if first is None else f"{first} has {len(names)}"
                raise InputError(
                    f"{table.where(row)}: column {settings.endings!r} holds {number} endings, {other}"
                )
    assert names is not None
    return names


def by_name(label: str, names: Sequence[str]) -> int | None:
    """Return the index of a name, None if it is none; false may stand for False, and 1.0 for 1."""
    same = (label, label.lower() if label in ("True", "False") else label, f"{label}.0")
    return next((names.index(text) for text in same if text in names), None)


def by_index(label: str, names: Sequence[str]) -> int | None:
    """Return a whole number from 0 to K-1 in plain ASCII digits, None for anything else."""
    if label.isascii() and label.isdecimal() and len(label) < 10 and str(int(label)) == label:
        return int(label) if int(label) < len(names) else None
    return None


def label_index(label: object, names: Sequence[str]) -> int | None:
    """Return the index of a label given as a name or else as an index, None if it is neither."""
    found = by_name(str(label), names)
    return by_index(str(label), names) if found is None else found


def two_ways(names: Sequence[str]) -> bool:
    """Return whether some text is the name of one label and the index of another."""
    return any(
        by_index(name.removesuffix(".0"), names) not in (None, i) for i, name in enumerate(names)
    )


def first_places(tables: Iterable[Table]) -> Places:
    """Return where each label, as it is written, stands first."""
    found: dict[str, tuple[Table, int]] = {}
    for table in tables:
        for i, label in enumerate(table.labels):
            found.setdefault(str(label), (table, i))
    return found


def _classes(typed: Mapping[str, Table], source: str) -> tuple[str, ...] | None:
    """Return the classes that the parts declare; their order may differ, their names may not."""
    first: tuple[str, tuple[str, ...]] | None = None
    for part, table in typed.items():
        assert table.label_names is not None
        if first is None:
            first = part, table.label_names
        elif set(first[1]) != set(table.label_names):
            raise InputError(
                f"{source}: the classes of {part} ({listed(table.label_names)}) are not those of "
                f"{first[0]} ({listed(first[1])}); set data.labels"
            )
    return None if first is None else first[1]


def _found(settings: DataSettings, places: Places, source: str) -> tuple[str, ...]:
    """Return the labels of the rows as names, if they are ones."""
    found = sorted(places, key=_natural)
    column = f"column {settings.label!r}"
    numbers = [y for y in found if _is_number(y)]
    part = next((y for y in numbers if not float(y).is_integer()), None)
    if part is not None and len(numbers) == len(found):
        raise InputError(
            f"{_at(places, part)}: {column} holds numbers, as {part}; regression is not "
            "supported; if they are names of classes, declare them in data.labels"
        )
    if len(found) < 2:
        raise InputError(f"{source}: {column} holds {len(found)} label; need 2")
    if len(found) > MOST_LABELS:
        raise InputError(
            f"{source}: {column} holds {len(found)} labels, more than "
            f"{MOST_LABELS}; is it the right column (data.label)?"
        )
    alike: dict[str, str] = {}
    for label in found:
        if label.casefold() == "nan":
            raise InputError(
                f"{_at(places, label)}: {column} holds {short(label)}, a missing label; if it is a "
                "class, declare it in data.labels"
            )
        other = alike.setdefault(_plain(label), label)
        if other != label:
            raise InputError(
                f"{_at(places, label)}: {column} holds {short(label)}, which differs from "
                f"{short(other)} ({_at(places, other)}) by blanks, case or writing alone; make "
                "them one, or declare both in data.labels"
            )
        if label != label.strip():
            raise InputError(
                f"{_at(places, label)}: {column} holds {short(label)}, with blanks at its ends"
            )
    return tuple(found)


def _at(places: Places, label: str) -> str:
    table, row = places[label]
    return table.where(row)


def _plain(label: str) -> str:
    """Return what labels that a reader takes for the same have in common."""
    text = unicodedata.normalize("NFC", " ".join(label.split()).casefold())
    return repr(float(text)) if _is_number(text) and len(text) < 16 else text


def _is_number(text: str) -> bool:
    return len(text) < 100 and bool(NUMBER.fullmatch(text)) and math.isfinite(float(text))


def listed(names: tuple[str, ...]) -> str:
    """Return names for a message, the first ones of many."""
    shown = [name if len(name) <= 40 else f"{name[:37]}..." for name in names[:20]]
    return ", ".join(shown) + (f" and {len(names) - 20} more" if len(names) > 20 else "")


def _natural(label: str) -> tuple[int, int, str]:
    digits = label.removeprefix("-")
    if digits.isascii() and digits.isdecimal() and len(digits) < 1000:
        return (0, int(label), label)
    return (1, 0, label)
