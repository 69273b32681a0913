"""A run: its parts and where it stands."""

import time
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsvd.client.worker import Worker
from fedsvd.engines.base import Engine
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.blend import Average
from fedsvd.privacy.client_level import ClientMechanism
from fedsvd.privacy.ledger import Ledger
from fedsvd.rounds.journal import Journal
from fedsvd.settings import Settings


@dataclass
class Run:
    """The parts of a run and where it stands."""

    settings: Settings
    worker: Worker
    strategy: FlowerStrategy
    grid: Engine
    ledger: Ledger
    state: AdapterState
    client_level: ClientMechanism | None = None
    rounds_taken: list[int] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)  # the metrics of each round
    rounds: int = 0  # the round that it ends after; settings.rounds is what the plan was made for
    attempt: int = 0  # at the coming round
    journal: Journal = field(default_factory=Journal)
    strategy_start: Mapping[str, Any] = field(default_factory=dict)
    started: tuple[float, float] | None = None  # loss of the public texts before and after `start`
    orders: Mapping[str, int] = field(default_factory=dict)  # to all clients, in every message
    average: Average | None = None  # of states after rounds, if so set
    noise: dict[str, tuple[float, float]] = field(default_factory=dict)  # NoiseView.total
    began: float = field(default_factory=time.perf_counter)
    seconds_before: float = 0.0
    asked: float = field(default_factory=time.perf_counter)
    command: str = ""  # that made it, where there was one
    setup_seconds: float = 0.0  # from there to the first round of this process

    def seconds(self) -> float:
        """Return the seconds that rounds have taken, also before the run was resumed."""
        return self.seconds_before + time.perf_counter() - self.began
