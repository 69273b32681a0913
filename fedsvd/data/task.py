"""A task: labelled texts, split once into clients' part, validation, test and public texts.

What becomes of a row follows from the row itself, the seed and the settings: a row more or less
leaves every other one where it is (docs/data_privacy.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from fedsvd.data.labels import label_index, label_names
from fedsvd.data.sources import Table, read_tables
from fedsvd.data.splits import split
from fedsvd.errors import InputError
from fedsvd.settings import DataSettings

# Whose rows a source holds: everybody's, as in a simulation, one client's own, or the server's own.
Holder = Literal["all", "client", "server"]
NEEDS = {"all": ("train", "validation"), "client": ("train",), "server": ("validation",)}
# A record that stands in several parts of a source counts in the first of these.
ORDER = ("test", "validation", "public", "train", "all")


def _none() -> np.ndarray:
    return np.zeros(0, dtype=np.int64)


@dataclass(frozen=True)
class Task:
    """Labelled texts with a fixed split.

    `texts[i]` is a tuple of one or two strings, `labels` (n,) int64 in 0..K-1, `label_names` their
    K names; `train`, `validation`, `test` and `public` are disjoint int64 index arrays into them;
    `public` is what the server may look at beside what clients release. `duplicates` counts rows
    whose text and label were there already, `strangers` those of no known label that were left out.
    """

    name: str
    texts: list[tuple[str, ...]]
    labels: np.ndarray
    label_names: tuple[str, ...]
    train: np.ndarray
    validation: np.ndarray
    test: np.ndarray
    source: str
    duplicates: int
    public: np.ndarray = field(default_factory=_none)
    strangers: int = 0
    rows: list[str] = field(default_factory=list)  # where each text stands, for messages

    @property
    def classes(self) -> int:
        """The number K of labels."""
        return len(self.label_names)


def load_task(
    settings: DataSettings, seed: int, holder: Holder = "all", private: bool = False
) -> Task:
    """Read, deduplicate and split a task; see `fedsvd.data.splits`.

    A record is a text with its label. Equal ones count once, so a row more changes one record at
    most. A text with two labels is two records, in one part unless the source itself has them in two.
    A client's own rows are all to train on; there a row whose label is not among the declared ones is
    left out, since an error would tell the server of it. `private` says that the rows are protected:
    the labels must then be declared. Raises InputError for anything unusable in the data, as an empty
    part that is needed.
    """
    tables, source = read_tables(settings)
    _check_ids(tables)
    names = label_names(settings, tables, source, private)
    if private:
        _check_rates(settings, tables)
    rows = _gather(tables, names, source, lenient=holder == "client")
    if holder == "client":
        settings = replace(settings, public=0)
        held = [part for name, part in rows.parts.items() if name != "public"]
        parts = {"train": np.concatenate(held), "validation": _none(), "test": _none()}
    else:
        parts = rows.parts
        if not private:
            _check_seen(tables, rows, names)
    found = split(parts, rows.texts, settings, seed, source)
    for part in NEEDS[holder]:
        if len(found[part]) == 0:
            raise InputError(
                f"{source}: the {part} part is empty; a part that is not given is drawn, each row by "
                "itself, and of few rows it can get none"
            )
    return Task(
        settings.name, rows.texts, rows.labels, names, **found, source=source,
        duplicates=rows.duplicates, strangers=rows.strangers, rows=rows.places,
    )  # fmt: skip


@dataclass(frozen=True)
class _Rows:
    """The records of a source, each once: texts, labels (n,) and the part where each stands."""

    texts: list[tuple[str, ...]]
    labels: np.ndarray
    parts: dict[str, np.ndarray]
    duplicates: int
    strangers: int
    places: list[str]


def _gather(
    tables: Mapping[str, Table], names: tuple[str, ...], source: str, lenient: bool
) -> _Rows:
    """Return each record once; InputError for a label that is not in the set, unless `lenient`."""
    texts: list[tuple[str, ...]] = []
    labels: list[int] = []
    places: list[str] = []
    parts: dict[str, np.ndarray] = {}
    seen: set[tuple[tuple[str, ...], int]] = set()
    duplicates = strangers = 0
    for part in sorted(tables, key=ORDER.index):
        table, first = tables[part], len(texts)
        for i, (text, label) in enumerate(zip(table.texts, table.labels, strict=True)):
            index = label_index(label, names)
            row = table.rows[i] if table.rows else f"{source}: row {i + 1} of {part}"
            if index is None and not lenient:
                raise InputError(f"{row}: label {str(label)!r} is not one of {', '.join(names)}")
            if index is None:
                strangers += 1
            elif (text, index) in seen:
                duplicates += 1
            else:
                seen.add((text, index))
                texts.append(text)
                labels.append(index)
                places.append(row)
        parts[part] = np.arange(first, len(texts))
    return _Rows(texts, np.asarray(labels, dtype=np.int64), parts, duplicates, strangers, places)


def _check_rates(settings: DataSettings, tables: Mapping[str, Table]) -> None:
    """Raise InputError if which private rows are taken would depend on how many there are."""
    drawn = settings.public and "public" not in tables
    if settings.public_size is None and (settings.limit or drawn):
        key = "data.limit" if settings.limit else "data.public"
        raise InputError(
            f"data.public_size: needed under privacy with {key}, which takes each row by a coin of "
            "its own; give about how many examples all clients hold together"
        )


def _check_ids(tables: Mapping[str, Table]) -> None:
    """Raise InputError if two rows of any parts have one id."""
    seen: dict[str, str] = {}
    for table in tables.values():
        for key, row in zip(table.ids, table.rows, strict=False):
            if key in seen:
                raise InputError(f"{row}: its id {key!r} is that of {seen[key]} (data.id)")
            seen[key] = row


def _check_seen(tables: Mapping[str, Table], rows: _Rows, names: Sequence[str]) -> None:
    """Raise InputError if validation or test have a label that training does not."""
    if "train" not in rows.parts:
        return
    known = set(rows.labels[rows.parts["train"]].tolist())
    for part in ("validation", "test"):
        found = rows.parts.get(part, _none())
        for i, row in enumerate(found):
            label = int(rows.labels[row])
            if label not in known:
                lines = tables[part].rows
                where = f"{lines[i]}: " if len(lines) == len(found) else ""
                raise InputError(
                    f"{where}label {names[label]!r} of the {part} part is not in training"
                )
