"""The frozen backbone, its head, and the factors of its layers."""

from dataclasses import dataclass, field
from typing import Any

from fedsvd.errors import wrong
from fedsvd.settings.checks import at_least, choice, positive


@dataclass(frozen=True)
class ModelSettings:
    """The frozen backbone, how its output is pooled, and the head on top."""

    name: str
    package: str | None = None  # an installed package that ships the weights of `name`
    folder: str | None = None
    revision: str | None = None
    pooling: str = "mean"
    normalize: bool = True
    head: str = "trained"
    head_init: str = "zeros"
    head_bias: bool = False
    scale: float = 1.0  # logits = scale * head(features)
    temperature: float | None = None  # in place of scale: logits = head(features) / temperature
    head_cosine: float = 0.2  # most between class vectors of an equiangular head
    head_dim: int = 8  # of the subspaces of a Grassmann head
    max_length: int = 128
    dropout: float = 0.0

    def __post_init__(self) -> None:
        choice("model.pooling", self.pooling, ("mean", "cls", "last"))
        choice("model.head", self.head, HEADS)
        choice("model.head_init", self.head_init, HEAD_INITS)
        positive("model.scale", self.scale)
        if self.temperature is not None:
            positive("model.temperature", self.temperature)
        if not 0 < self.head_cosine < 1:
            raise wrong("model.head_cosine", self.head_cosine, "in (0, 1)")
        at_least("model.head_dim", self.head_dim, 1)
        at_least("model.max_length", self.max_length, 2)
        if not 0 <= self.dropout < 1:
            raise wrong("model.dropout", self.dropout, "in [0, 1)")

    @property
    def logit_scale(self) -> float:
        """What the head's output is multiplied by to give logits."""
        return self.scale if self.temperature is None else 1 / self.temperature

    @property
    def head_start(self) -> str:
        """Where the head starts: "random", "texts" or "zeros"."""
        frozen = {"frozen_random": "random", "frozen_texts": "texts"}
        return frozen.get(self.head, self.head_init)


FIXED_HEADS = ("equiangular", "etf", "grassmann")
HEADS = (*FIXED_HEADS, "frozen_random", "frozen_texts", "trained")
HEAD_INITS = ("random", "texts", "zeros")


@dataclass(frozen=True)
class AdapterSettings:
    """How the targeted linear layers get what trains; see configs/adapter/.

    `target` is the import path of an adapter of the user's own, None for the one called `name`;
    `options` are its constructor's arguments. `ranks` maps names or patterns of layers to ranks.
    `layers` says in which blocks: None for all, "upper_third", or a number for so many of the last.
    """

    name: str
    rank: int = 8
    alpha: float = 8.0
    init: str = "kaiming"
    targets: tuple[str, ...] = ("query", "value")
    layers: str | None = None
    dropout: float = 0.0
    ranks: dict[str, Any] | None = None
    calibration: int = 64  # public texts that an adapter may look at
    target: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.target is None:
            choice("adapter.name", self.name, (*ADAPTERS, "none"))
        at_least("adapter.rank", self.rank, 1)
        positive("adapter.alpha", self.alpha)
        choice("adapter.init", self.init, INITS)
        at_least("adapter.calibration", self.calibration, 1)
        if not self.targets:
            raise wrong("adapter.targets", [], "at least one name of a linear layer")
        if self.layers not in (None, UPPER_THIRD) and not _count(str(self.layers)):
            raise wrong(
                "adapter.layers", self.layers,
                f"null (all blocks), {UPPER_THIRD}, or a whole number of at least 1",
            )  # fmt: skip
        if not 0 <= self.dropout < 1:
            raise wrong("adapter.dropout", self.dropout, "in [0, 1)")
        for pattern, rank in (self.ranks or {}).items():
            if not isinstance(rank, int) or isinstance(rank, bool) or rank < 1:
                raise wrong(f"adapter.ranks.{pattern}", rank, "a whole number of at least 1")

    @property
    def resolved(self) -> str:
        """The adapter's name, with `adapter=lora adapter.init=pissa` as pissa."""
        return "pissa" if self.name == "lora" and self.init == "pissa" else self.name

    @property
    def label(self) -> str:
        """What summaries call it: a name, with LoRA's start after a slash, or a class's path."""
        if self.target is not None:
            return self.target
        return f"lora/{self.init}" if self.name == "lora" else self.name


UPPER_THIRD = "upper_third"


def _count(text: str) -> int:
    """Return the whole number that a text says, 0 for none."""
    return int(text) if text.isascii() and text.isdigit() else 0


INITS = ("gaussian", "kaiming", "orthonormal", "pissa")
ADAPTERS = {
    "lora": "fedsvd.adapters.Lora",
    "pissa": "fedsvd.adapters.Pissa",
    "milora": "fedsvd.adapters.Milora",
    "soma": "fedsvd.adapters.Milora",
    "olora": "fedsvd.adapters.Olora",
    "eva": "fedsvd.adapters.Eva",
    "eora": "fedsvd.adapters.Eora",
    "dct": "fedsvd.adapters.Dct",
    "hadamard": "fedsvd.adapters.Hadamard",
    "dora": "fedsvd.adapters.Dora",
    "lora_xs": "fedsvd.adapters.LoraXS",
    "svfit": "fedsvd.adapters.SVFit",
    "sorsa": "fedsvd.adapters.Sorsa",
    "effort": "fedsvd.adapters.Effort",
    "kronecker": "fedsvd.adapters.Kronecker",
    "cayley": "fedsvd.adapters.Cayley",
}
