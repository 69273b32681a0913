"""Texts and how they are dealt to clients."""

from dataclasses import dataclass, field
from typing import Any

from fedsvd.errors import one_of, wrong
from fedsvd.settings.checks import at_least, choice, different, positive


@dataclass(frozen=True)
class DataSettings:
    """Where the texts are and how they are split; see configs/data/."""

    name: str
    path: str | None = None  # a folder, a file, or a hub id; overrides the rest
    package: str | None = None  # an installed package that ships `file`
    file: str | None = None
    filter: dict[str, Any] | None = None  # column: value, or list of values, of the rows to keep
    hub: str | None = None
    hub_config: str | None = None
    text: tuple[str, ...] = ("text",)  # one column, or two for sentence pairs
    label: str | None = "label"  # None: rows have no label
    messages: str | None = None  # a column of conversations, in place of texts, for task=causal
    endings: str | None = None  # a column of lists of endings, for task=choice
    labels: tuple[str, ...] | None = None  # names of labels 0..K-1; None: found, without privacy
    label_type: str = "auto"  # whether labels in the data are "names" or "indices" of `labels`
    label_texts: tuple[tuple[str, ...], ...] | None = None  # public words for each label
    splits: dict[str, str] | None = None  # ours: theirs, for sources that come split
    validation: float = 0.1
    test: float = 0.1
    limit: int | None = None  # of each part keep about this many, each row by its own coin
    limit_evaluation: int | None = None  # of validation and test, in place of `limit`
    id: str | None = None  # a column whose values must differ in all rows of all parts
    client: str | None = None  # a column that says whose each row is, for partition=natural
    clients: tuple[str, ...] | None = None  # the ids in it, as publicly known
    public: int = 0  # texts that no client holds and the server may look at
    public_size: int | None = None  # about how many examples all clients hold, as publicly known

    def __post_init__(self) -> None:
        if not 1 <= len(self.text) <= 2:
            raise wrong("data.text", list(self.text), "one column, or two for sentence pairs")
        for key in ("validation", "test"):
            share = getattr(self, key)
            if not 0 < share < 1:
                raise wrong(f"data.{key}", share, "a share between 0 and 1")
        if self.validation + self.test >= 1:
            raise wrong("data.test", self.test, "such that validation + test < 1")
        names = self.labels or ()
        twice = next((name for name in names if names.count(name) > 1), None)
        if twice is not None or (self.labels is not None and len(names) < 2):
            raise wrong("data.labels", list(names), "at least 2 names, no two of them equal")
        blank = next((name for name in names if name != name.strip() or not name), None)
        if blank is not None:
            raise wrong("data.labels", list(names), f"without blanks at the ends, as of {blank!r}")
        choice("data.label_type", self.label_type, ("auto", "names", "indices"))
        self._check_splits()
        if self.limit is not None:
            at_least("data.limit", self.limit, 1)
        if self.limit_evaluation is not None:
            at_least("data.limit_evaluation", self.limit_evaluation, 1)
        at_least("data.public", self.public, 0)
        different("data.clients", self.clients)
        if self.public_size is not None:
            at_least("data.public_size", self.public_size, 1)

    @property
    def held_out(self) -> int | None:
        """About how many rows of validation, and of test, are kept; None: all."""
        return self.limit if self.limit_evaluation is None else self.limit_evaluation

    def _check_splits(self) -> None:
        """Refuse parts that there are not, and a whole that is split beside its parts."""
        parts, given = ("train", "validation", "test"), self.splits or {}
        for part in given:
            if part not in ("all", "public", *parts):
                raise one_of("data.splits", part, ("all", "public", *parts))
        beside = next((part for part in parts if part in given), None)
        if self.splits is not None and ("all" in given) == (beside is not None):
            raise wrong("data.splits", dict(given), "either all, which is split here, or the parts")


PARTITIONS = (
    "dirichlet", "files", "flower", "iid", "natural", "own", "published", "quantity", "shards",
)  # fmt: skip
PUBLISHED_CLIENTS = 6  # of the one split that is published


@dataclass(frozen=True)
class PartitionSettings:
    """How the training examples are dealt to clients; see configs/partition/."""

    name: str
    alpha: float = 0.5
    min_examples: int = 10
    draws: int = 10
    shards: int = 2  # of each client, of "shards"
    holder: int | None = None  # of "own": the client that this process is; None: the server
    # Of "natural": whose each row is; None: data.client. Of "dirichlet": what stands in a label's
    # place. Of "flower": a column that the partitioner looks at.
    column: str | None = None
    ids: tuple[str, ...] | None = None  # the clients, in order; None: data.clients, or the files
    small: str = "refuse"  # what becomes of natural clients below min_examples: refuse, drop
    target: str | None = None  # of "flower": the import path of a partitioner
    options: dict[str, Any] = field(default_factory=dict)  # that it takes

    def __post_init__(self) -> None:
        choice("partition.name", self.name, PARTITIONS)
        positive("partition.alpha", self.alpha)
        at_least("partition.min_examples", self.min_examples, 0)
        at_least("partition.draws", self.draws, 1)
        at_least("partition.shards", self.shards, 1)
        choice("partition.small", self.small, ("refuse", "drop"))
        different("partition.ids", self.ids)
        if (self.name == "flower") != (self.target is not None):
            raise wrong(
                "partition._target_", self.target,
                "the import path of a partitioner, as flwr_datasets.partitioner.IidPartitioner, with "
                "partition=flower alone",
            )  # fmt: skip
        if self.options and self.target is None:
            raise one_of(f"partition.{next(iter(self.options))}", next(iter(self.options)), KEYS)


# What a user may set of a partition beside the options of a partitioner.
KEYS = tuple(f for f in PartitionSettings.__dataclass_fields__ if f not in ("target", "options"))
