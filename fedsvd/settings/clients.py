"""Who takes part, and the local training of one client."""

import math
from dataclasses import dataclass
from typing import Literal

from fedsvd.errors import wrong
from fedsvd.settings.checks import at_least, choice, positive


@dataclass(frozen=True)
class ClientSettings:
    """How many clients there are, and who takes part when."""

    number: int
    per_round: int
    participation: str = "balanced"
    max_rounds: int | None = None
    weighting: str = "auto"
    ranks: tuple[int, ...] | None = None  # of each client; None: adapter.rank
    features: tuple[tuple[float, ...], ...] | None = None  # of each client, public; for dpp

    def __post_init__(self) -> None:
        at_least("clients.number", self.number, 1)
        at_least("clients.per_round", self.per_round, 1)
        if self.per_round > self.number:
            raise wrong(
                "clients.per_round", self.per_round, f"at most clients.number = {self.number}"
            )
        choice("clients.participation", self.participation, PARTICIPATION)
        choice("clients.weighting", self.weighting, ("auto", "examples", "uniform"))
        if self.max_rounds is not None:
            at_least("clients.max_rounds", self.max_rounds, 1)
        self._check_features()
        if self.ranks is not None and (len(self.ranks) != self.number or min(self.ranks) < 1):
            raise wrong(
                "clients.ranks", list(self.ranks),
                f"null, or clients.number = {self.number} whole numbers of at least 1",
            )  # fmt: skip

    def _check_features(self) -> None:
        """Refuse features that are not one row for each client, or of too low a rank to draw by."""
        rows = self.features
        if rows is None:
            if self.participation == "dpp":
                raise wrong(
                    "clients.features", None,
                    "public numbers of each client, [[...], [...], ...], with "
                    "clients.participation=dpp",
                )  # fmt: skip
            return
        columns = {len(row) for row in rows}
        if len(rows) != self.number or len(columns) != 1 or 0 in columns:
            raise wrong(
                "clients.features", f"{len(rows)} rows of {sorted(columns)} numbers",
                f"clients.number = {self.number} rows of as many numbers each",
            )  # fmt: skip
        for k, row in enumerate(rows):
            if not all(map(math.isfinite, row)) or not any(row):
                raise wrong(
                    "clients.features", list(row),
                    f"finite numbers and not all 0 for client {k}, who would never be drawn",
                )  # fmt: skip
        import numpy as np

        rank = int(np.linalg.matrix_rank(np.array(rows)))
        if self.participation == "dpp" and rank < self.per_round:
            raise wrong(
                "clients.features", f"of rank {rank}",
                f"of rank clients.per_round = {self.per_round} or more, as fewer directions span no "
                "volume of so many clients",
            )  # fmt: skip


PARTICIPATION = ("all", "balanced", "dpp", "poisson", "uniform")


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
    microbatch_tokens: int | Literal["auto"] = 768  # auto: measured before round 0
    factors: str = "auto"  # which of A, B train: what the strategy declares, or B, A, AB
    gradient_checkpointing: bool = False  # blocks run again on the way back, to save memory
    cache: str = "auto"  # of what enters the lowest adapted block: auto, off, or bytes of memory

    def __post_init__(self) -> None:
        positive("training.lr", self.lr)
        at_least("training.local_steps", self.local_steps, 1)
        at_least("training.batch_size", self.batch_size, 1)
        choice("training.schedule", self.schedule, ("constant", "linear"))
        choice("training.optimizer", self.optimizer, ("sgd", "adamw"))
        if not 0 <= self.momentum < 1:
            raise wrong("training.momentum", self.momentum, "in [0, 1)")
        if not 0 <= self.weight_decay < math.inf:
            raise wrong("training.weight_decay", self.weight_decay, "0 or more")
        if self.clip_norm is not None:
            positive("training.clip_norm", self.clip_norm)
        choice("training.precision", self.precision, ("auto", "bf16", "fp32"))
        if not isinstance(self.microbatch_tokens, str) and self.microbatch_tokens < 1:
            raise wrong(
                "training.microbatch_tokens", self.microbatch_tokens,
                "auto, or a whole number of at least 1",
            )  # fmt: skip
        choice("training.factors", self.factors, ("auto", "A", "B", "AB"))
        if self.cache not in ("auto", "off") and not (
            self.cache.isascii() and self.cache.isdigit()
        ):
            raise wrong("training.cache", self.cache, "auto, off, or a whole number of bytes")

    @property
    def budget(self) -> int:
        """The padded tokens of a micro-batch; RuntimeError for `auto`, which a run replaces."""
        if isinstance(self.microbatch_tokens, str):
            raise RuntimeError("training.microbatch_tokens: auto, and no number was chosen")
        return self.microbatch_tokens

    @property
    def cache_bytes(self) -> int | None:
        """The bytes of memory that kept hidden states may take; None: none are kept."""
        if self.cache == "off":
            return None
        return AUTO_CACHE if self.cache == "auto" else int(self.cache)


AUTO = "auto"
DEFAULT_BUDGET = 768  # tokens, where nothing was measured
AUTO_CACHE = 2**30  # bytes; the default task with the default model takes about 450 MB in float32
