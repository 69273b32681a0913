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
    head_form: str = "linear"  # or "two_layer", of a head that trains or is random
    head_init: str = "zeros"
    head_bias: bool = False
    scale: float | None = None  # logits = scale * head(features); None: see `logit_scale`
    temperature: float | None = None  # in place of scale: logits = head(features) / temperature
    head_cosine: float = 0.2  # most between class vectors of an equiangular head
    head_dim: int = 8  # of the subspaces of the Grassmann heads
    max_length: int = 128
    dropout: float = 0.0
    dtype: str = "float32"  # in which frozen matrices are held
    attention: str = "eager"  # Transformers' implementation; auto: sdpa with a CUDA device
    quantization: str = "none"  # of frozen linear layers, by bitsandbytes

    def __post_init__(self) -> None:
        choice("model.dtype", self.dtype, ("bfloat16", "float32"))
        choice("model.attention", self.attention, ATTENTION)
        choice("model.quantization", self.quantization, ("int8", "nf4", "none"))
        choice("model.pooling", self.pooling, ("mean", "cls", "last"))
        choice("model.head", self.head, HEADS)
        choice("model.head_form", self.head_form, HEAD_FORMS)
        choice("model.head_init", self.head_init, HEAD_INITS)
        self._check_form()
        if self.scale is not None:
            positive("model.scale", self.scale)
        if self.temperature is not None:
            positive("model.temperature", self.temperature)
        if not 0 < self.head_cosine < 1:
            raise wrong("model.head_cosine", self.head_cosine, "in (0, 1)")
        at_least("model.head_dim", self.head_dim, 1)
        at_least("model.max_length", self.max_length, 2)
        if not 0 <= self.dropout < 1:
            raise wrong("model.dropout", self.dropout, "in [0, 1)")

    def _check_form(self) -> None:
        """Refuse two layers where one layer's rows are what the head is."""
        if self.head_form == "linear":
            return
        if self.head not in ("frozen_random", "trained"):
            raise wrong(
                "model.head_form", self.head_form,
                f"'linear' with model.head={self.head}, or take model.head=frozen_random or trained",
            )  # fmt: skip
        if self.head_start == "texts":
            raise wrong(
                "model.head_init", "texts",
                "'random' or 'zeros' with model.head_form=two_layer: texts start a linear head",
            )  # fmt: skip

    @property
    def stored(self) -> str:
        """The settings by which frozen weights are held in fewer bytes than float32, "" for none."""
        if self.quantization != "none":
            return f"model.quantization={self.quantization}"
        return "" if self.dtype == "float32" else f"model.dtype={self.dtype}"

    @property
    def logit_scale(self) -> float:
        """What the head's output is multiplied by to give logits.

        1 / temperature if that is given, else `scale`. Without either: as published for equiangular
        vectors (1 / 0.07) and for the Grassmann heads (25), else 10 for features of length 1, and 1.
        """
        if self.temperature is not None:
            return 1 / self.temperature
        if self.scale is not None:
            return self.scale
        return PUBLISHED.get(self.head, 10.0 if self.unit_features else 1.0)

    @property
    def unit_features(self) -> bool:
        """Whether features have length 1: `normalize`, or a head whose logits are cosines."""
        return self.normalize or self.head in ("equiangular", "etf")

    @property
    def head_trains(self) -> bool:
        """Whether clients train the head and send it."""
        return self.head in TRAINED_HEADS

    @property
    def head_start(self) -> str:
        """Where the head starts: "random", "texts" or "zeros"."""
        frozen = {"frozen_random": "random", "frozen_texts": "texts"}
        return frozen.get(self.head, self.head_init)


# Heads that start from geometry alone, of which the Grassmann head trains.
FIXED_HEADS = ("equiangular", "etf", "grassmann", "grassmann_fixed")
TRAINED_HEADS = ("grassmann", "trained")
HEADS = (*FIXED_HEADS, "frozen_random", "frozen_texts", "trained")
ATTENTION = ("auto", "eager", "flash_attention_2", "sdpa")
HEAD_FORMS = ("linear", "two_layer")
PUBLISHED = {"equiangular": 1 / 0.07, "grassmann": 25.0, "grassmann_fixed": 25.0}  # scales
HEAD_INITS = ("random", "texts", "zeros")


@dataclass(frozen=True)
class AdapterSettings:
    """How the targeted linear layers get what trains; see configs/adapter/.

    `target` is the import path of an adapter of the user's own, None for the one called `name`;
    `options` are its constructor's arguments. `ranks` maps names or patterns of layers to ranks.
    `rank` is None where the adapter chooses it by layer.
    `layers` says in which blocks: None for all, "upper_third", or a number for so many of the last.
    """

    name: str
    rank: int | None = 8
    alpha: float = 8.0
    init: str = "kaiming"
    targets: tuple[str, ...] = ("query", "value")
    layers: str | None = None
    dropout: float = 0.0
    ranks: dict[str, Any] | None = None
    calibration: int = 64  # public texts that an adapter may look at
    rslora: bool = False  # the scale alpha / sqrt(rank) in place of alpha / rank
    target: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if self.target is None:
            choice("adapter.name", self.name, (*ADAPTERS, "none"))
        if self.rank is not None:
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
    "gradient": "fedsvd.adapters.Gradient",
    "hadamard": "fedsvd.adapters.Hadamard",
    "imbalanced": "fedsvd.adapters.Imbalanced",
    "dora": "fedsvd.adapters.Dora",
    "lora_ga": "fedsvd.adapters.LoraGA",
    "lora_sb": "fedsvd.adapters.LoraSB",
    "lora_xs": "fedsvd.adapters.LoraXS",
    "svfit": "fedsvd.adapters.SVFit",
    "sorsa": "fedsvd.adapters.Sorsa",
    "effort": "fedsvd.adapters.Effort",
    "kronecker": "fedsvd.adapters.Kronecker",
    "cayley": "fedsvd.adapters.Cayley",
    "xkv": "fedsvd.adapters.Xkv",
}
