"""What of a run's records may be shown to others: the one gate before reports and trackers.

Private are, under privacy: numbers of examples and label mixes, unless `privacy.public_counts` states
that they are public; and, with `privacy.diagnostics=false`, all that is not known to be a function of
released values, of public data or of the plan. The run folder itself is for its owner, and holds more
(docs/data_privacy.md).
"""

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

from fedsvd.objectives.build import OBJECTIVES
from fedsvd.objectives.metric import GENERATED
from fedsvd.privacy.plan import ClientPlan, PrivacyPlan
from fedsvd.rounds.record import RoundRecord, Start, Summary, TaskRecord
from fedsvd.settings import Settings

FIGURES = ("loss", *dict.fromkeys(m.name for o in OBJECTIVES.values() for m in o.metrics))
# Of the global model on the server's parts, of released states, of the plan and the ledger.
PUBLIC = frozenset({
    "round", *FIGURES, *(f"{kind}_{name}" for kind in ("subset", "raw") for name in FIGURES),
    *(m.name for m in GENERATED), "answered", "examples", "subset_examples", "macro_f1", "mcc",
    "confusion", "epsilon_max", "epsilon",
    "bytes_up", "bytes_down", "seconds", "train_seconds", "evaluate_seconds", "clip_norm",
    "A_space", "A_space_start", "A_rows", "noise_share", "noise_ratios", "noise_floor",
    "not_aggregated", "ended",
})  # fmt: skip


@dataclass(frozen=True)
class View:
    """What may be shown: whether all that clients report (`open`), and numbers of examples."""

    open: bool
    counts: bool
    rates: bool  # whether a client's sample rate and expected batch may be shown

    @staticmethod
    def of(settings: Settings, plan: PrivacyPlan) -> "View":
        """Return what the settings of a run let be shown."""
        counts = not plan.private or plan.public_counts
        return View(
            open=not plan.private or settings.privacy.diagnostics,
            counts=counts,
            rates=counts or plan.per_example,  # these follow from public sizes then
        )

    def start(self, start: Start) -> Start:
        """Return a start without what is private; numbers that are not shown are 0, as elsewhere."""
        if self.counts:
            return start
        plan = replace(start.plan, clients=tuple(map(self._client, start.plan.clients)))
        return replace(
            start, plan=plan, task=self._task(start.task), ledger=self.ledger(start.ledger)
        )

    def _client(self, client: ClientPlan) -> ClientPlan:
        hidden: dict[str, Any] = {"examples": 0}
        if not self.rates:
            hidden.update(sample_rate=0.0, expected_batch=0.0)
        return replace(client, **hidden)

    @staticmethod
    def _task(task: TaskRecord) -> TaskRecord:
        none = (0,) * len(task.labels)
        return replace(
            task, train=0, duplicates=0, truncated=None, clients=tuple(none for _ in task.clients)
        )

    def ledger(self, ledger: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a ledger without numbers of examples, where they are private."""
        if self.counts:
            return ledger
        names = {"examples"} if self.rates else {"examples", "sample_rate", "expected_batch"}
        clients = [{k: v for k, v in c.items() if k not in names} for c in ledger["clients"]]
        return {**ledger, "clients": clients}

    def metrics(self, metrics: Mapping[str, Any]) -> Mapping[str, Any]:
        """Return a round's metrics without what is private."""
        return metrics if self.open else {k: v for k, v in metrics.items() if k in PUBLIC}

    def round(self, record: RoundRecord) -> RoundRecord:
        """Return a round without what is private."""
        metrics, ledger = self.metrics(record.metrics), self.ledger(record.ledger)
        return replace(record, metrics=metrics, ledger=ledger)

    def summary(self, summary: Summary) -> Summary:
        """Return a summary without what is private."""
        history = tuple(self.metrics(m) for m in summary.history)
        return replace(summary, history=history, ledger=self.ledger(summary.ledger))
