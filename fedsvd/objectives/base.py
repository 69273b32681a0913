"""What a model is trained for: which rows it reads, what an example's loss is, what is measured.

Nothing outside knows which objective it is: strategies, adapters, privacy, engines, resume and
records ask the methods below. An objective is stateless; what it works on is handed to it.
"""

from abc import ABC, abstractmethod
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import torch
from torch import Generator, Tensor, nn

from fedsvd.adapters import lora
from fedsvd.data.task import Task
from fedsvd.data.tokens import Batch, Tokens
from fedsvd.models.backbone import written_name
from fedsvd.models.base import Model
from fedsvd.models.digest import vocabulary_digest
from fedsvd.objectives.metric import Metric
from fedsvd.settings import DataSettings, Settings


@dataclass(frozen=True)
class Head:
    """What stands on the backbone: a name and a form for records, and a phrase for the screen."""

    name: str
    form: str
    phrase: str


@dataclass(frozen=True)
class Exported:
    """A finished model, with its state written into it, and what a folder must say to load it.

    `weights` is a digest of the plain backbone's. `written` is the folder of what trained,
    "adapter" or "merged", or "" without an adapter.
    """

    settings: Settings
    task: Task
    tokenizer: Any
    model: Model
    weights: str
    written: str


class Objective(ABC):
    """One kind of task. `metrics` are its figures beside `loss`; runs are compared by the first.

    `generated` are the figures of answers that are generated if `recorder.answers` asks for it; see
    `fedsvd.client.evaluation`.
    """

    name: ClassVar[str]
    metrics: ClassVar[tuple[Metric, ...]]
    generated: ClassVar[tuple[Metric, ...]] = ()
    unusable: ClassVar[str]  # what is wrong with a row of which nothing can be learnt
    peft_task: ClassVar[str | None] = None  # PEFT's name for it, in an exported adapter

    @property
    def metric(self) -> Metric:
        """The figure by which rounds and runs are compared."""
        return self.metrics[0]

    # What it reads.

    @abstractmethod
    def check(self, settings: Settings) -> None:
        """Raise InputError that names the key for settings under which it could not train."""

    @abstractmethod
    def columns(self, data: DataSettings) -> DataSettings:
        """Return the settings of the data with the columns that it reads."""

    @abstractmethod
    def tokens(self, settings: Settings, task: Task, tokenizer: Any) -> Tokens:
        """Return the task's rows as tokens, with what each is trained to say; InputError."""

    @abstractmethod
    def random(self, tokens: Tokens, classes: int, generator: Generator) -> Tokens:
        """Return random tokens with what a random row is trained to say, for checks of a model."""

    @abstractmethod
    def described(self, settings: Settings, task: Task, tokenizer: Any) -> Tokens | None:
        """Return public rows that describe what is to be learnt, None if the settings hold none."""

    # The model.

    @abstractmethod
    def output(self, settings: Settings) -> Head:
        """Return what stands on the backbone, in words."""

    @abstractmethod
    def pretrained(self, settings: Settings) -> nn.Module:
        """Return the pretrained model as Transformers saves it, frozen, on the CPU; InputError."""

    @abstractmethod
    def outline(self, settings: Settings) -> nn.Module:
        """Return a backbone of the same shapes, frozen, whose weights are nobody's; InputError."""

    @abstractmethod
    def backbone(self, settings: Settings) -> tuple[nn.Module, str]:
        """Return the pretrained backbone, frozen, on the CPU, and a digest of its weights.

        Raises InputError if it cannot serve.
        """

    @abstractmethod
    def head(
        self, settings: Settings, backbone: nn.Module, tokenizer: Any, task: Task,
        device: torch.device, precision: str,
    ) -> nn.Module:  # fmt: skip
        """Return what stands on the backbone, which is on `device`, at its start."""

    @abstractmethod
    def model(
        self, settings: Settings, attached: lora.Attached, head: nn.Module, precision: str
    ) -> Model:
        """Return the backbone with its factors and its head as one model."""

    # What it is worth.

    @abstractmethod
    def losses(self, model: Model, batch: Batch, entering: Tensor | None = None) -> Tensor:
        """Return the loss (n,) of each example of a batch, float32, a function of it alone.

        `entering` (n, t, d) is what enters the model's first block above `lower`, if that is kept.
        """

    @abstractmethod
    def flipped(self, batch: Batch, classes: int) -> Batch:
        """Return the batch with wrong labels, as a harmful client learns them."""

    @abstractmethod
    def width(self, classes: int) -> int:
        """Return how many numbers of an example's `outputs` its figures follow from."""

    @abstractmethod
    def outputs(self, model: Model, batch: Batch, entering: Tensor | None = None) -> Tensor:
        """Return the numbers (n, width) of each example that its figures follow from."""

    @abstractmethod
    def measure(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Return `loss` and the metrics of examples: outputs (n, width), labels (n,) int64."""

    @abstractmethod
    def details(self, outputs: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return what the rows of a public part tell beyond `measure`, by name, JSON-ready."""

    # What is given away.

    @abstractmethod
    def prefix(self, backbone: nn.Module) -> str:
        """Return what stands before the names of the backbone's layers in `pretrained`."""

    @abstractmethod
    def export(self, given: Exported, folder: Path) -> None:
        """Write into the run folder what is needed, beside `written`, to put the model together."""


def found_again(given: Exported) -> dict[str, Any]:
    """Return where a finished run's base model is, and digests by which it is known again."""
    model = given.settings.model
    return {
        "model": written_name(model),
        "weights": given.weights,
        "vocabulary": vocabulary_digest(given.tokenizer),
        "package": model.package,
        "folder": model.folder,
        "revision": model.revision,
    }
