"""Where clients execute, and what is written."""

import math
from dataclasses import dataclass, field
from typing import Any

from fedsvd.errors import wrong
from fedsvd.settings.checks import at_least, choice

RECORDERS = ("files", "csv", "tensorboard", "wandb", "mlflow")


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
        choice("engine.name", self.name, ("inline", "ray"))
        if self.workers is not None:
            at_least("engine.workers", self.workers, 1)
        for key in ("num_cpus", "num_gpus"):
            if not 0 <= getattr(self, key) < math.inf:
                raise wrong(f"engine.{key}", getattr(self, key), "0 or more")
        if self.threads is not None:
            at_least("engine.threads", self.threads, 1)


@dataclass(frozen=True)
class RecorderSettings:
    """What is written beside metrics.jsonl, and how often the global model is evaluated.

    `target` is the import path of a recorder of one's own, which gets `options`.
    """

    name: tuple[str, ...]
    evaluate_every: int = 1
    evaluate_examples: int | None = None  # of validation, while a run goes; None: all of it
    checkpoint_every: int = 1  # rounds; the last one is kept in any case
    keep: int = 2  # checkpoints that stay, beside the best
    answers: int | None = 0  # questions of validation and test that are answered; None: all
    answer_tokens: int = 32  # the most of an answer
    test: bool = True  # whether the test part is looked at, once, at the end
    project: str = "fedsvd"  # of W&B; the experiment of MLflow
    group: str | None = None  # of the runs of a sweep; None: the sweep's folder
    run_name: str | None = None  # None: task, strategy and seed
    mode: str = "offline"  # of W&B
    store: str | None = None  # of MLflow; None: a database in the run folder
    target: str | None = None
    options: dict[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for name in self.name:
            choice("recorder.name", name, RECORDERS)
        if not self.name or len(set(self.name)) < len(self.name):
            raise wrong("recorder.name", list(self.name), "at least one, no two of them equal")
        choice("recorder.mode", self.mode, ("offline", "online"))
        at_least("recorder.evaluate_every", self.evaluate_every, 1)
        if self.evaluate_examples is not None:
            at_least("recorder.evaluate_examples", self.evaluate_examples, 1)
        if self.answers is not None and self.answers < 0:
            raise wrong(
                "recorder.answers", self.answers, "a whole number of at least 0, or null for all"
            )
        at_least("recorder.answer_tokens", self.answer_tokens, 1)
        at_least("recorder.checkpoint_every", self.checkpoint_every, 1)
        at_least("recorder.keep", self.keep, 1)
