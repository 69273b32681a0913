"""The configuration as checked, immutable data.

Hydra composes a tree of plain values; `fedsvd.config` turns it into `Settings` or raises InputError
that names the key, the value and what is allowed. Nothing here imports torch or Flower, so a wrong
configuration is refused in about a second.
"""

import dataclasses
import math
from dataclasses import dataclass
from typing import Any

from fedsvd.errors import InputError, one_of, wrong


@dataclass(frozen=True)
class DataSettings:
    """Where the texts are and how they are split; see configs/data/."""

    name: str
    path: str | None = None  # a folder, a .csv or .jsonl file, or a hub id; overrides the rest
    package: str | None = None  # an installed package that ships `file`
    file: str | None = None
    filter: dict[str, str] | None = None  # column: value of the rows to keep
    hub: str | None = None
    hub_config: str | None = None
    text: tuple[str, ...] = ("text",)  # one column, or two for sentence pairs
    label: str = "label"
    labels: tuple[str, ...] | None = None  # names of labels 0..K-1; None: found in the data
    label_texts: tuple[tuple[str, ...], ...] | None = None  # public words for each label
    splits: dict[str, str] | None = None  # ours: theirs, for sources that come split
    validation: float = 0.1
    test: float = 0.1
    limit: int | None = None  # keep at most this many examples of each split
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
        if self.limit is not None:
            _at_least("data.limit", self.limit, 1)
        if self.public_size is not None:
            _at_least("data.public_size", self.public_size, 1)


@dataclass(frozen=True)
class PartitionSettings:
    """How the training examples are dealt to clients; see configs/partition/."""

    name: str
    alpha: float = 0.5
    min_examples: int = 10
    draws: int = 10

    def __post_init__(self) -> None:
        _choice("partition.name", self.name, ("dirichlet", "iid"))
        _positive("partition.alpha", self.alpha)
        _at_least("partition.min_examples", self.min_examples, 1)
        _at_least("partition.draws", self.draws, 1)


@dataclass(frozen=True)
class ClientSettings:
    """How many clients there are, and who takes part when."""

    number: int
    per_round: int
    participation: str = "balanced"
    max_rounds: int | None = None
    weighting: str = "auto"

    def __post_init__(self) -> None:
        _at_least("clients.number", self.number, 1)
        _at_least("clients.per_round", self.per_round, 1)
        if self.per_round > self.number:
            raise wrong(
                "clients.per_round", self.per_round, f"at most clients.number = {self.number}"
            )
        _choice("clients.participation", self.participation, PARTICIPATION)
        _choice("clients.weighting", self.weighting, ("auto", "examples", "uniform"))
        if self.max_rounds is not None:
            _at_least("clients.max_rounds", self.max_rounds, 1)


PARTICIPATION = ("all", "balanced", "poisson", "uniform")


@dataclass(frozen=True)
class TrainingSettings:
    """The local training of one client in one round."""

    lr: float
    local_steps: int
    batch_size: int  # expected size of a Poisson batch
    schedule: str = "constant"  # of lr over the rounds
    optimizer: str = "sgd"
    momentum: float = 0.0
    weight_decay: float = 0.0
    clip_norm: float | None = 1.0  # norm of the whole gradient, only without privacy
    precision: str = "auto"
    microbatch_tokens: int = 768
    factors: str = "auto"  # which of A, B train: what the strategy declares, or B, A, AB

    def __post_init__(self) -> None:
        _positive("training.lr", self.lr)
        _at_least("training.local_steps", self.local_steps, 1)
        _at_least("training.batch_size", self.batch_size, 1)
        _choice("training.schedule", self.schedule, ("constant", "linear"))
        _choice("training.optimizer", self.optimizer, ("sgd", "adamw"))
        if not 0 <= self.momentum < 1:
            raise wrong("training.momentum", self.momentum, "in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise wrong("training.weight_decay", self.weight_decay, "0 or more")
        if self.clip_norm is not None:
            _positive("training.clip_norm", self.clip_norm)
        _choice("training.precision", self.precision, ("auto", "bf16", "fp32"))
        _at_least("training.microbatch_tokens", self.microbatch_tokens, 1)
        _choice("training.factors", self.factors, ("auto", "A", "B", "AB"))


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
    max_length: int = 128
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _choice("model.pooling", self.pooling, ("mean", "cls", "last"))
        _choice("model.head", self.head, HEADS)
        _choice("model.head_init", self.head_init, HEAD_INITS)
        _positive("model.scale", self.scale)
        _at_least("model.max_length", self.max_length, 2)
        if not 0 <= self.dropout < 1:
            raise wrong("model.dropout", self.dropout, "in [0, 1)")

    @property
    def head_start(self) -> str:
        """Where the head starts: "random", "texts" or "zeros"."""
        frozen = {"frozen_random": "random", "frozen_texts": "texts"}
        return frozen.get(self.head, self.head_init)


HEADS = ("frozen_random", "frozen_texts", "trained")
HEAD_INITS = ("random", "texts", "zeros")


@dataclass(frozen=True)
class AdapterSettings:
    """How the targeted linear layers get their factors; see configs/adapter/."""

    name: str
    rank: int = 8
    alpha: float = 8.0
    init: str = "kaiming"
    targets: tuple[str, ...] = ("query", "value")
    dropout: float = 0.0

    def __post_init__(self) -> None:
        _choice("adapter.name", self.name, ("lora", "none"))
        _at_least("adapter.rank", self.rank, 1)
        _positive("adapter.alpha", self.alpha)
        _choice("adapter.init", self.init, INITS)
        if not self.targets:
            raise wrong("adapter.targets", [], "at least one name of a linear layer")
        if not 0 <= self.dropout < 1:
            raise wrong("adapter.dropout", self.dropout, "in [0, 1)")


INITS = ("gaussian", "kaiming", "orthonormal", "pissa")


@dataclass(frozen=True)
class StrategySettings:
    """The aggregation rule: an import path and its arguments."""

    target: str
    options: dict[str, Any] = dataclasses.field(default_factory=dict)


@dataclass(frozen=True)
class PrivacySettings:
    """What is protected, and the budget; see configs/privacy/."""

    unit: str
    epsilon: float | None = None
    noise_multiplier: float | None = None  # given instead of epsilon, which then follows
    delta: float = 1e-5
    clip_norm: float = 1.0
    clipping: str = "flat"
    accountant: str = "prv"
    public_counts: bool = False  # whether the numbers of examples may show in rates and weights
    threat_model: str = "server_sees_participants"
    secure_noise: bool = False
    diagnostics: bool = True
    clip_quantile: float | None = None  # unit=client: adapt the clip to this quantile of norms
    clip_rate: float = 0.2
    clip_noise: float | None = None  # standard deviation on the count of clients below the clip

    def __post_init__(self) -> None:
        _choice("privacy.unit", self.unit, UNITS)
        _choice("privacy.accountant", self.accountant, ("pld", "prv", "rdp"))
        _choice("privacy.clipping", self.clipping, ("automatic", "flat", "per_layer"))
        _choice("privacy.threat_model", self.threat_model, THREAT_MODELS)
        if self.unit == "none":
            return
        if self.noise_multiplier is not None:
            _positive("privacy.noise_multiplier", self.noise_multiplier)
            if self.epsilon is not None:
                raise wrong(
                    "privacy.noise_multiplier", self.noise_multiplier,
                    f"null while privacy.epsilon={self.epsilon:g} is set: one follows from the "
                    "other; add privacy.epsilon=null",
                )  # fmt: skip
        elif self.epsilon is None:
            raise wrong(
                "privacy.epsilon", None, "a number above 0, or set privacy.noise_multiplier"
            )
        else:
            _positive("privacy.epsilon", self.epsilon)
        if not 0 < self.delta < 1:
            raise wrong("privacy.delta", self.delta, "between 0 and 1/n of every client")
        _positive("privacy.clip_norm", self.clip_norm)
        self._check_unit()

    def _check_unit(self) -> None:
        if self.unit == "example" and self.threat_model == "trusted_server":
            raise wrong(
                "privacy.threat_model", self.threat_model,
                "'server_sees_participants' with privacy.unit=example; sampling of clients "
                "amplifies only privacy.unit=client",
            )  # fmt: skip
        if self.clip_quantile is not None:
            if self.unit != "client" or self.clipping != "flat":
                raise wrong(
                    "privacy.clip_quantile", self.clip_quantile,
                    "null, unless privacy.unit=client and privacy.clipping=flat",
                )  # fmt: skip
            if not 0 < self.clip_quantile < 1:
                raise wrong("privacy.clip_quantile", self.clip_quantile, "between 0 and 1")
        _positive("privacy.clip_rate", self.clip_rate)
        if self.clip_noise is not None:
            _positive("privacy.clip_noise", self.clip_noise)


UNITS = ("client", "example", "none")
THREAT_MODELS = ("server_sees_participants", "trusted_server")


@dataclass(frozen=True)
class EngineSettings:
    """Where clients execute; see configs/engine/."""

    name: str
    threads: int | None = None
    workers: int | None = None  # of engine=ray; null: as many as fit
    num_cpus: float = 1.0  # of a worker
    num_gpus: float = 0.0
    address: str | None = None  # of a running cluster; null: RAY_ADDRESS, or one is started

    def __post_init__(self) -> None:
        _choice("engine.name", self.name, ("inline", "ray"))
        if self.workers is not None:
            _at_least("engine.workers", self.workers, 1)
        for key in ("num_cpus", "num_gpus"):
            if not 0 <= getattr(self, key) < math.inf:
                raise wrong(f"engine.{key}", getattr(self, key), "0 or more")
        if self.threads is not None:
            _at_least("engine.threads", self.threads, 1)


@dataclass(frozen=True)
class RecorderSettings:
    """What is written beside metrics.jsonl, and how often the global model is evaluated."""

    name: str
    evaluate_every: int = 1

    def __post_init__(self) -> None:
        _choice("recorder.name", self.name, ("files", "tensorboard"))
        _at_least("recorder.evaluate_every", self.evaluate_every, 1)


@dataclass(frozen=True)
class Settings:
    """A whole run."""

    seed: int
    rounds: int
    device: str
    clients: ClientSettings
    training: TrainingSettings
    data: DataSettings
    partition: PartitionSettings
    model: ModelSettings
    adapter: AdapterSettings
    strategy: StrategySettings
    privacy: PrivacySettings
    engine: EngineSettings
    recorder: RecorderSettings

    def __post_init__(self) -> None:
        _at_least("seed", self.seed, 0)
        _at_least("rounds", self.rounds, 1)
        if self.device not in ("auto", "cpu", "cuda") and not self.device.startswith("cuda:"):
            raise one_of("device", self.device, ("auto", "cpu", "cuda"))
        if self.adapter.name == "none" and self.model.head != "trained":
            raise InputError(
                f"adapter: with 'none' and model.head={self.model.head!r} nothing would train; "
                "set model.head=trained or adapter=lora"
            )

        self._check_privacy()

    def _check_privacy(self) -> None:
        privacy, clients = self.privacy, self.clients
        if privacy.unit == "none":
            return
        if clients.weighting == "examples" and not privacy.public_counts:
            raise wrong(
                "clients.weighting", "examples",
                "'uniform' or 'auto' under privacy, unless privacy.public_counts=true states that "
                "the numbers of examples are public",
            )  # fmt: skip
        if privacy.threat_model == "trusted_server" and (
            clients.participation != "poisson" or clients.max_rounds is not None
        ):
            raise wrong(
                "privacy.threat_model", "trusted_server",
                "used with clients.participation=poisson and clients.max_rounds=null, for which "
                "the amplification by sampling clients holds",
            )  # fmt: skip

    def key(self) -> str:
        """Return a text that is equal for equal settings."""
        return repr(self)


def _choice(key: str, value: str, names: tuple[str, ...]) -> None:
    if value not in names:
        raise one_of(key, value, names)


def _positive(key: str, value: float) -> None:
    if not 0 < value < math.inf:
        raise wrong(key, value, "a number above 0")


def _at_least(key: str, value: int, least: int) -> None:
    if value < least:
        raise wrong(key, value, f"a whole number of at least {least}")
