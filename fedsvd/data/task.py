"""A task: labelled texts, split once into clients' part, validation and test."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from fedsvd.data.sources import Table, read_tables
from fedsvd.errors import InputError, wrong
from fedsvd.randomness import Purpose, numpy_stream
from fedsvd.settings import DataSettings

MOST_LABELS = 1000  # found in data; more must be named in data.labels


@dataclass(frozen=True)
class Task:
    """Labelled texts with a fixed split.

    `texts[i]` is a tuple of one or two strings, `labels` (n,) int64 in 0..K-1, `label_names` their
    K names; `train`, `validation`, `test` and `public` are disjoint int64 index arrays into them;
    `public` is what the server may look at beside what clients release.
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
    public: np.ndarray = field(default_factory=lambda: np.zeros(0, dtype=np.int64))

    @property
    def classes(self) -> int:
        """The number K of labels."""
        return len(self.label_names)


def load_task(
    settings: DataSettings, seed: int, needs: Sequence[str] = ("train", "validation")
) -> Task:
    """Read, deduplicate and split a task.

    A source that comes split keeps its split (`data.splits` says which part is ours); otherwise
    each label's examples are shuffled by the stream (seed, "split") and cut into validation, test
    and the clients' part. Duplicate texts are dropped first (the first one stays), so no text is in
    two parts. Raises InputError for anything unusable in the data, as an empty part that is needed.
    """
    tables, source = read_tables(settings)
    _check_ids(tables)
    names = _label_names(settings, tables, source)
    texts: list[tuple[str, ...]] = []
    labels: list[int] = []
    parts: dict[str, list[int]] = {}
    seen: set[tuple[str, ...]] = set()
    duplicates = 0
    # Validation and test first: a text that is also in training is dropped from training.
    for part in sorted(tables, key=["test", "validation", "train", "all"].index):
        table = tables[part]
        for i, (text, label) in enumerate(zip(table.texts, table.labels, strict=True)):
            index = _label_index(label, names, table.rows[i] if table.rows else source)
            if text in seen:
                duplicates += 1
                continue
            seen.add(text)
            parts.setdefault(part, []).append(len(texts))
            texts.append(text)
            labels.append(index)
    y = np.asarray(labels, dtype=np.int64)
    _check_seen(tables, parts, y, names)
    split = _split(parts, y, settings, seed)
    if settings.public:
        if settings.public >= len(split["train"]):
            raise wrong("data.public", settings.public, f"below {len(split['train'])}, of {source}")
        order = numpy_stream(seed, Purpose.SPLIT, "public").permutation(split["train"])
        split["public"] = np.sort(order[: settings.public])
        split["train"] = np.sort(order[settings.public :])
    for part in needs:
        if len(split[part]) == 0:
            raise InputError(f"{source}: the {part} part is empty")
    return Task(settings.name, texts, y, names, **split, source=source, duplicates=duplicates)


def _split(
    parts: Mapping[str, list[int]], y: np.ndarray, settings: DataSettings, seed: int
) -> dict[str, np.ndarray]:
    """Return disjoint index arrays for train, validation and test."""
    if "all" in parts:
        pool, shares = np.asarray(parts["all"]), {"validation": settings.validation}
        shares["test"] = settings.test
    else:
        pool, shares = np.asarray(parts.get("train", []), dtype=np.int64), {}
        if "validation" not in parts:
            shares["validation"] = settings.validation
    split: dict[str, list[int]] = {"train": [], "validation": [], "test": []}
    rng = numpy_stream(seed, Purpose.SPLIT)
    for label in np.unique(y[pool]):
        members = rng.permutation(pool[y[pool] == label])
        start = 0
        for part, share in shares.items():
            stop = start + round(share * len(members))
            split[part].extend(members[start:stop])
            start = stop
        split["train"].extend(members[start:])
    for part in ("validation", "test"):
        split[part].extend(parts.get(part, []))
    limit = settings.limit
    return {
        part: np.sort(rng.permutation(np.asarray(rows, dtype=np.int64))[:limit])
        for part, rows in split.items()
    }


def _check_ids(tables: Mapping[str, Table]) -> None:
    """Raise InputError if two rows of any parts have one id."""
    seen: dict[str, str] = {}
    for table in tables.values():
        for key, row in zip(table.ids, table.rows, strict=False):
            if key in seen:
                raise InputError(f"{row}: its id {key!r} is that of {seen[key]} (data.id)")
            seen[key] = row


def _check_seen(
    tables: Mapping[str, Table], parts: Mapping[str, list[int]], y: np.ndarray, names: Sequence[str]
) -> None:
    """Raise InputError if validation or test have a label that training does not."""
    if "train" not in parts:
        return
    known = set(y[parts["train"]].tolist())
    for part in ("validation", "test"):
        for i, row in enumerate(parts.get(part, [])):
            if int(y[row]) not in known:
                rows = tables[part].rows
                where = f"{rows[i]}: " if len(rows) == len(parts[part]) else ""
                raise InputError(
                    f"{where}label {names[int(y[row])]!r} of the {part} part is not in training"
                )


def _label_names(
    settings: DataSettings, tables: Mapping[str, Table], source: str
) -> tuple[str, ...]:
    """Return the names of the labels: as configured, as the source says, or as found."""
    if settings.labels is not None:
        return settings.labels
    for table in tables.values():
        if table.label_names is not None:
            return table.label_names
    found = sorted(
        {str(label) for table in tables.values() for label in table.labels}, key=_natural
    )
    if len(found) < 2:
        raise InputError(f"{source}: column {settings.label!r} holds {len(found)} label; need 2")
    if len(found) > MOST_LABELS:
        raise InputError(
            f"{source}: column {settings.label!r} holds {len(found)} labels, more than "
            f"{MOST_LABELS}; is it the right column (data.label)?"
        )
    return tuple(found)


def _natural(label: str) -> tuple[int, int, str]:
    return (0, int(label), "") if label.lstrip("-").isdigit() else (1, 0, label)


def _label_index(label: object, names: tuple[str, ...], source: str) -> int:
    """Return the index of a label given as a name or as an index."""
    text = str(label)
    if text in names:
        return names.index(text)
    if text.isdigit() and int(text) < len(names):
        return int(text)
    raise InputError(f"{source}: label {text!r} is not one of {', '.join(names)}")
