"""A task: labelled texts, split once into clients' part, validation and test."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from fedsvd.data.sources import Table, read_tables
from fedsvd.errors import InputError
from fedsvd.randomness import Purpose, numpy_stream
from fedsvd.settings import DataSettings


@dataclass(frozen=True)
class Task:
    """Labelled texts with a fixed split.

    `texts[i]` is a tuple of one or two strings, `labels` (n,) int64 in 0..K-1, `label_names` their
    K names; `train`, `validation` and `test` are disjoint int64 index arrays into them.
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

    @property
    def classes(self) -> int:
        """The number K of labels."""
        return len(self.label_names)


def load_task(settings: DataSettings, seed: int) -> Task:
    """Read, deduplicate and split a task.

    A source that comes split keeps its split (`data.splits` says which part is ours); otherwise
    each label's examples are shuffled by the stream (seed, "split") and cut into validation, test
    and the clients' part. Duplicate texts are dropped first (the first one stays), so no text is in
    two parts. Raises InputError for anything unusable in the data.
    """
    tables, source = read_tables(settings)
    names = _label_names(settings, tables, source)
    texts: list[tuple[str, ...]] = []
    labels: list[int] = []
    parts: dict[str, list[int]] = {}
    seen: set[tuple[str, ...]] = set()
    duplicates = 0
    # Validation and test first: a text that is also in training is dropped from training.
    for part in sorted(tables, key=["test", "validation", "train", "all"].index):
        for text, label in zip(tables[part].texts, tables[part].labels, strict=True):
            if text in seen:
                duplicates += 1
                continue
            seen.add(text)
            parts.setdefault(part, []).append(len(texts))
            texts.append(text)
            labels.append(_label_index(label, names, source))
    y = np.asarray(labels, dtype=np.int64)
    split = _split(parts, y, settings, seed)
    for part in ("train", "validation"):
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
        pool, shares = np.asarray(parts["train"]), {}
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
