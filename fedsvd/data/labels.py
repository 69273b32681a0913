"""The set of labels: declared, or as the source publishes it, or, without privacy, found in the rows.

Under privacy the rows have no say in it: a class that one row could create would show in the shape of
the head, in its name in the run folder and in every message.
"""

from collections.abc import Mapping

from fedsvd.data.sources import Table
from fedsvd.errors import InputError
from fedsvd.settings import DataSettings

MOST_LABELS = 1000  # found in data; more must be named in data.labels


def label_names(
    settings: DataSettings, tables: Mapping[str, Table], source: str, private: bool
) -> tuple[str, ...]:
    """Return the names of the labels 0..K-1.

    They are `data.labels`, or the classes in the schema of a hub's data set, or those of the rows.
    Raises InputError for the last under privacy, and for fewer than 2 or more than `MOST_LABELS`.
    """
    if settings.labels is not None:
        return settings.labels
    for table in tables.values():
        if table.label_names is not None:
            return table.label_names
    if private:
        raise InputError(
            "data.labels: needed under privacy, as the number and names of classes must not depend "
            "on private rows; declare them from what is publicly known, in the order of indices: "
            "'data.labels=[negative,positive]'"
        )
    found = sorted({str(y) for table in tables.values() for y in table.labels}, key=_natural)
    if len(found) < 2:
        raise InputError(f"{source}: column {settings.label!r} holds {len(found)} label; need 2")
    if len(found) > MOST_LABELS:
        raise InputError(
            f"{source}: column {settings.label!r} holds {len(found)} labels, more than "
            f"{MOST_LABELS}; is it the right column (data.label)?"
        )
    return tuple(found)


def label_index(label: object, names: tuple[str, ...]) -> int | None:
    """Return the index of a label given as a name or as an index, None if it is not in the set."""
    text = str(label)
    if text in names:
        return names.index(text)
    if text.isascii() and text.isdigit() and int(text) < len(names):
        return int(text)
    return None


def _natural(label: str) -> tuple[int, int, str]:
    digits = label.removeprefix("-")
    if digits.isascii() and digits.isdigit():
        return (0, int(label), "")
    return (1, 0, label)
