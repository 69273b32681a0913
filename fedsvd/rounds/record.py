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

    `source` is a phrase. `train`, `validation` and `test` count examples, `duplicates` those that
    were dropped. `clients[k][c]` is how many examples of label c client k holds; all are 0 for a
    client whose data is on its own machine. `evaluated` counts the validation examples of evaluations
    before the last one, None if that is all of them. `truncated` counts rows that were cut, None
    where that is not counted. Rows without labels are all of one, "examples".
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
    """The model of a run: where its weights are from, and how much of it trains.

    `blocks` is a phrase about those below the lowest adapted one, "" if there are none.
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

    `rounds` is the round that it ends after. `ledger` is what privacy.json holds.
    """

    settings: Settings
    plan: PrivacyPlan
    rounds: int
    task: TaskRecord
    model: ModelRecord
    ledger: Mapping[str, Any]


@dataclass(frozen=True)
class RoundRecord:
    """A round that is done; round 0 is the initial state.

    `rounds` is the round that the run ends after. `metrics` are what metrics.jsonl gets, by the names
    in docs/configuration.md. `ledger` is what every client has spent so far, as in privacy.json.
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

    `values` are what summary.json gets, `history` the metrics of all rounds from 0, `ledger` what
    privacy.json holds.
    """

    values: Mapping[str, Any]
    history: Sequence[Mapping[str, Any]]
    ledger: Mapping[str, Any]
