"""A whole run, and what its groups demand of each other."""

from dataclasses import dataclass, field, replace
from typing import Any

from fedsvd.errors import InputError, one_of, wrong
from fedsvd.settings.attack import AttackSettings
from fedsvd.settings.averaging import AveragingSettings
from fedsvd.settings.checks import at_least, choice
from fedsvd.settings.clients import AUTO, ClientSettings, TrainingSettings
from fedsvd.settings.data import PUBLISHED_CLIENTS, DataSettings, PartitionSettings
from fedsvd.settings.engine import EngineSettings, RecorderSettings
from fedsvd.settings.faults import FaultSettings
from fedsvd.settings.model import AdapterSettings, ModelSettings
from fedsvd.settings.privacy import PrivacySettings
from fedsvd.settings.start import StartSettings

TASKS = ("classification", "causal", "choice")


@dataclass(frozen=True)
class StrategySettings:
    """The aggregation rule: an import path and its arguments."""

    target: str
    options: dict[str, Any] = field(default_factory=dict)


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
    faults: FaultSettings = field(default_factory=FaultSettings)
    attack: AttackSettings = field(default_factory=AttackSettings)
    averaging: AveragingSettings = field(default_factory=AveragingSettings)
    start: StartSettings = field(default_factory=StartSettings)
    task: str = "classification"  # what a model is trained for: see fedsvd.objectives

    def __post_init__(self) -> None:
        at_least("seed", self.seed, 0)
        at_least("rounds", self.rounds, 1)
        choice("task", self.task, TASKS)
        if self.device not in ("auto", "cpu", "cuda") and not self.device.startswith("cuda:"):
            raise one_of("device", self.device, ("auto", "cpu", "cuda", "cuda:N"))
        if self.adapter.name == "none" and not self.model.head_trains:
            raise InputError(
                f"adapter: with 'none' and model.head={self.model.head!r} nothing would train; "
                "set model.head=trained or adapter=lora"
            )
        if self.attack.clients and max(self.attack.clients) >= self.clients.number:
            raise wrong(
                "attack.clients", list(self.attack.clients),
                f"ids of clients, 0 to {self.clients.number - 1}",
            )  # fmt: skip
        most = self.adapter.rank
        if self.clients.ranks is not None and most is not None and max(self.clients.ranks) > most:
            raise wrong(
                "clients.ranks", list(self.clients.ranks),
                f"at most adapter.rank = {most} each",
            )  # fmt: skip
        if self.partition.name == "published" and self.clients.number != PUBLISHED_CLIENTS:
            raise wrong(
                "clients.number", self.clients.number,
                f"{PUBLISHED_CLIENTS} with partition=published, whose clients these are",
            )  # fmt: skip
        if self.recorder.answers != 0 and self.task != "causal":
            raise wrong(
                "recorder.answers", self.recorder.answers,
                f"0 with task={self.task}: answers are generated with task=causal alone",
            )  # fmt: skip
        averaging = self.averaging
        if averaging.active and not averaging.held(self.rounds):
            raise wrong(
                "averaging.end", averaging.end, f"so that a round of {self.rounds} is averaged"
            )
        self._check_privacy()
        if self.partition.name == "own":
            self._check_own()
        self._check_partition()

    @property
    def labelled(self) -> bool:
        """Whether every row has one of a fixed set of labels."""
        return self.task == "classification"

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
        if privacy.unit == "client" and clients.ranks is not None:
            raise wrong(
                "clients.ranks", list(clients.ranks),
                "null with privacy.unit=client, whose mean is over updates of one shape",
            )  # fmt: skip
        if privacy.threat_model == "trusted_server" and (
            clients.participation != "poisson" or clients.max_rounds is not None
        ):
            raise wrong(
                "privacy.threat_model", "trusted_server",
                "used with clients.participation=poisson and clients.max_rounds=null, for which "
                "the amplification by sampling clients holds",
            )  # fmt: skip
        if privacy.threat_model == "trusted_server" and not privacy.secure_noise:
            raise wrong(
                "privacy.secure_noise", False,
                "true with privacy.threat_model=trusted_server: whoever holds the seed, which is in "
                "the run's config.yaml, would know who takes part; then participants and noise are "
                "drawn from the operating system",
            )  # fmt: skip

    def _check_partition(self) -> None:
        """Refuse what would make a private row, or a private client, decide who the clients are."""
        given, unit = self.partition, self.privacy.unit
        if unit == "none":
            return
        known = self.data.clients if given.ids is None else given.ids
        if given.name == "natural" and known is None:
            raise wrong(
                "partition.ids", None,
                "the clients' ids with partition=natural under privacy, as publicly known: that one "
                "occurs in the data may hang on a single row",
            )  # fmt: skip
        if given.name == "files" and unit == "client" and given.ids is None:
            raise wrong(
                "partition.ids", None,
                "the clients' ids, the files' names, with partition=files and privacy.unit=client: "
                "that a client has a file at all is what is protected",
            )  # fmt: skip
        if given.small == "drop":
            raise wrong(
                "partition.small", "drop",
                "refuse under privacy: with a single row less all others of its client would go",
            )  # fmt: skip

    def _check_own(self) -> None:
        """Refuse what does not hold where clients are others' machines, or what nobody knows."""
        privacy = self.privacy
        if self.labelled and self.data.labels is None:
            raise wrong("data.labels", None, "the list of labels with partition=own")
        if self.training.microbatch_tokens == AUTO:
            raise wrong(
                "training.microbatch_tokens", AUTO,
                "a whole number with partition=own: it moves the last bits, so it is chosen before "
                "nodes are asked, and no node chooses it",
            )  # fmt: skip
        if privacy.unit == "none":
            return
        if privacy.public_counts or self.data.public_size is None:
            raise wrong(
                "data.public_size", self.data.public_size,
                "given, and privacy.public_counts false, with partition=own under privacy",
            )  # fmt: skip
        if not privacy.secure_noise:
            raise wrong(
                "privacy.secure_noise", False,
                "true with partition=own: the server knows the seed, and could take away noise "
                "that follows from it",
            )  # fmt: skip
        if privacy.diagnostics:
            raise wrong(
                "privacy.diagnostics", True,
                "false with partition=own: what it sends is outside the guarantee",
            )  # fmt: skip

    def with_budget(self, tokens: int) -> "Settings":
        """Return the same settings with `training.microbatch_tokens` of so many tokens."""
        return replace(self, training=replace(self.training, microbatch_tokens=tokens))

    def key(self) -> str:
        """Return a text that is equal for equal settings."""
        return repr(self)
