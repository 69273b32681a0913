"""A task: labelled texts, split once into clients' part, validation, test and public texts.

What becomes of a row follows from the row itself, the seed and the settings: a row more or less
leaves every other one where it is (docs/data_privacy.md).
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Literal

import numpy as np

from fedsvd.data.labels import ending_names, label_names
from fedsvd.data.reading import Reading, read_labels
from fedsvd.data.rows import Table
from fedsvd.data.sources import read_tables
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
    whose text and label were there already, `strangers` those of no known label that were left out;
    `notes` are lines to tell whoever holds the files.
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
    notes: tuple[str, ...] = ()
    rows: list[str] = field(default_factory=list)  # where each text stands, for messages
    owners: tuple[str, ...] = ()  # whose each text is, or the value of the column that deals
    given: tuple[str, ...] = ()  # the parts that the source has; others were drawn

    @property
    def classes(self) -> int:
        """The number K of labels."""
        return len(self.label_names)


def load_task(
    settings: DataSettings, seed: int, holder: Holder = "all", private: bool = False,
    by_file: bool = False,
) -> Task:  # fmt: skip
    """Read, deduplicate and split a task; see `fedsvd.data.splits`.

    A record is a text with its label. Equal ones count once, so a row more changes one record at
    most. A text with two labels is two records, in one part unless the source itself has them in two.
    A client's own rows are all to train on; there a row whose label is not among the declared ones is
    left out, since an error would tell the server of it. `private` says that the rows are protected:
    the labels must then be declared. `by_file`: every client's rows stand in a file of its own
    (`fedsvd.data.clients`). Raises InputError for anything unusable in the data, as an empty part
    that is needed.
    """
    given = read_tables(settings, by_file)
    tables, source = given.parts, given.source
    _check_ids(tables)
    chooses = settings.endings in settings.text
    if chooses:
        names = ending_names(settings, tables, private)
        settings = replace(settings, labels=names)
    else:
        names = label_names(settings, tables, source, private)
    if private:
        _check_rates(settings, tables)
    lenient = holder == "client"
    alone = private or holder != "all"
    rows = _gather(tables, read_labels(settings, tables, names, alone, lenient), lenient)
    if holder == "client":
        settings = replace(settings, public=0)
        held = [part for name, part in rows.parts.items() if name != "public"]
        parts = {"train": np.concatenate(held), "validation": _none(), "test": _none()}
    else:
        parts = rows.parts
        if not private and not chooses:
            _check_seen(tables, rows, names)
    found = split(parts, rows.texts, settings, seed, source)
    for part in NEEDS[holder]:
        if len(found[part]) == 0:
            parts_given = ", ".join(p for p in tables if p != "all")
            why = (
                "a part that is not given is drawn, each row by itself, and of few rows it can get "
                "none"
            )
            if part == "train" and parts_given:
                why = f"its parts are {parts_given}"
            if rows.strangers:
                why = f"{rows.strangers} rows have labels that are not among data.labels"
            raise InputError(f"{source}: the {part} part is empty; {why}")
    return Task(
        settings.name, rows.texts, rows.labels, names, **found, source=source,
        duplicates=rows.duplicates, strangers=rows.strangers, notes=given.notes,
        rows=[
            tables[part].where(int(rows.rows[row]))
            for part, held in rows.parts.items()
            for row in held
        ],
        owners=tuple(
            tables[part].owners[int(rows.rows[row])] if tables[part].owners else ""
            for part, held in rows.parts.items()
            for row in held
            if by_file or settings.client is not None
        ),
        given=tuple(parts),
    )  # fmt: skip


@dataclass(frozen=True)
class _Rows:
    """The records of a source, each once: texts, labels (n,), the part and row where each stands."""

    texts: list[tuple[str, ...]]
    labels: np.ndarray
    parts: dict[str, np.ndarray]
    rows: np.ndarray
    duplicates: int
    strangers: int


def _gather(tables: Mapping[str, Table], reading: Reading, lenient: bool) -> _Rows:
    """Return each record once; InputError for a label that is not in the set, unless `lenient`."""
    texts: list[tuple[str, ...]] = []
    labels: list[int] = []
    places: list[int] = []
    parts: dict[str, np.ndarray] = {}
    seen: set[tuple[tuple[str, ...], int, str | None]] = set()
    duplicates = strangers = 0
    for part in sorted(tables, key=ORDER.index):
        table, first, read = tables[part], len(texts), reading.index[part]
        owners = _owners(table, part)
        for i, (text, label) in enumerate(zip(table.texts, table.labels, strict=True)):
            index = read[str(label)]
            if index is None and not lenient:
                raise reading.refusal(table, i)
            if index is None:
                strangers += 1
            elif {(text, index, None), (text, index, owners[i])} & seen:
                duplicates += 1
            else:
                seen.add((text, index, owners[i]))
                texts.append(text)
                labels.append(index)
                places.append(i)
        parts[part] = np.arange(first, len(texts))
    return _Rows(
        texts, np.asarray(labels, dtype=np.int64), parts, np.asarray(places, dtype=np.int64),
        duplicates, strangers,
    )  # fmt: skip


def _owners(table: Table, part: str) -> Sequence[str | None]:
    """Return whose each row to train on is, None of all others: what two clients hold is two records.

    If it were one, a client that takes its row back would give it to the other.
    """
    own = part in ("train", "all") and table.owners
    return table.owners if own else [None] * len(table.texts)


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
    seen: dict[str, tuple[Table, int]] = {}
    for table in tables.values():
        for i, key in enumerate(table.ids):
            if key in seen:
                other, j = seen[key]
                raise InputError(
                    f"{table.where(i)}: its id {key!r} is that of {other.where(j)} (data.id)"
                )
            seen[key] = table, i


def _check_seen(tables: Mapping[str, Table], rows: _Rows, names: Sequence[str]) -> None:
    """Raise InputError if validation or test have a label that training does not."""
    if "train" not in rows.parts:
        return
    known = set(rows.labels[rows.parts["train"]].tolist())
    for part in ("validation", "test"):
        for row in rows.parts.get(part, _none()):
            label = int(rows.labels[row])
            if label not in known:
                where = tables[part].where(int(rows.rows[row]))
                raise InputError(
                    f"{where}: label {names[label]!r} of the {part} part is not in training"
                )
