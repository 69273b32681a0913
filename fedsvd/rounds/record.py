"""What recorders get: plain records of a run's start, of each round, and of its end."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsvd.privacy.plan import PrivacyPlan
from fedsvd.settings import Settings

# Which model figures are of, and which one is exported.
GLOBAL, AVERAGE = "the global model", "the average of global models"
PERSONAL = "clients' own models, mean over clients"
SHARED = "the part that clients share, without what each keeps"


@dataclass(frozen=True)
class TaskRecord:
    """The data of a run.

    Attributes:
        name: the name of the task.
        source: a phrase on where the data is from.
        labels: the names of the labels. Rows without labels all have the label "examples".
        train: the number of training examples.
        validation: the number of validation examples.
        test: the number of test examples.
        duplicates: the number of examples that were dropped.
        clients: `clients[k][c]` is how many examples of label c client k holds; all are 0 for a
            client whose data is on its own machine.
        evaluated: the number of validation examples in evaluations before the last one; None if that
            is all of them.
        truncated: the number of rows that were cut; None if it was not counted.
    """

    name: str
    source: str
    labels: tuple[str, ...]
    train: int
    validation: int
    test: int
    duplicates: int
    clients: tuple[tuple[int, ...], ...]
    evaluated: int | None = None
    truncated: int | None = None


@dataclass(frozen=True)
class ModelRecord:
    """The model of a run.

    Attributes:
        origin: a phrase on where its weights are from.
        parameters: the number of all parameters.
        trained: the number of those that train.
        device: where it is.
        precision: "fp32" or "bf16".
        blocks: a phrase on the blocks below the lowest adapted one, "" if there are none.
    """

    origin: str
    parameters: int
    trained: int
    device: str
    precision: str
    blocks: str = ""


@dataclass(frozen=True)
class Start:
    """A run before its first round, or before it goes on.

    Attributes:
        settings: the configuration as checked.
        plan: the privacy plan.
        rounds: the round that the run ends after.
        task: the data.
        model: the model.
        ledger: what privacy.json holds.
        started: the loss of the public texts before and after `start`; None without it.
    """

    settings: Settings
    plan: PrivacyPlan
    rounds: int
    task: TaskRecord
    model: ModelRecord
    ledger: Mapping[str, Any]
    started: tuple[float, float] | None = None


@dataclass(frozen=True)
class RoundRecord:
    """A round that is done; round 0 is the initial state.

    Attributes:
        round: the number of the round.
        rounds: the round that the run ends after.
        metrics: the line of metrics.jsonl, by the names in docs/configuration.md.
        ledger: what every client has spent so far, as in privacy.json.
    """

    round: int
    rounds: int
    metrics: Mapping[str, Any]
    ledger: Mapping[str, Any]

    @property
    def accuracy(self) -> float | None:
        """Validation accuracy in [0, 1], on `metrics["examples"]` rows; None if not evaluated."""
        return self.metrics.get("accuracy")

    @property
    def loss(self) -> float | None:
        """Validation loss; None in a round that was not evaluated."""
        return self.metrics.get("loss")

    @property
    def epsilon(self) -> float | None:
        """The largest epsilon that any client has spent; None without privacy, and in round 0."""
        return self.metrics.get("epsilon_max")


@dataclass(frozen=True)
class Summary:
    """A run that is finished.

    Attributes:
        values: what summary.json holds.
        history: the metrics of all rounds from 0.
        ledger: what privacy.json holds.
    """

    values: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    ledger: Mapping[str, Any]
