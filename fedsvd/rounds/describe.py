"""From a run to the plain records that recorders get."""

from collections.abc import Mapping
from typing import Any

import numpy as np

from fedsvd.rounds.published import published_figure
from fedsvd.rounds.record import ModelRecord, RoundRecord, Start, Summary, TaskRecord
from fedsvd.rounds.run import Run


def describe_start(run: Run) -> Start:
    """Return what a run is, before its next round."""
    worker, task, model = run.worker, run.worker.task, run.worker.model
    names = tuple(task.label_names) or ("examples",)
    counts = [np.bincount(task.labels[rows], minlength=len(names)) for rows in worker.parts]
    return Start(
        settings=run.settings,
        plan=worker.plan,
        rounds=run.rounds,
        task=TaskRecord(
            task.name, task.source, names, len(task.train),
            len(task.validation), len(task.test), task.duplicates,
            tuple(tuple(c.tolist()) for c in counts),
            len(worker.subset) if len(worker.subset) < len(task.validation) else None,
            worker.tokens.truncated,
        ),
        model=ModelRecord(
            worker.origin, sum(p.numel() for p in model.parameters()),
            sum(p.numel() for p in model.trainable().values()), str(worker.device),
            worker.precision, worker.blocks,
        ),
        ledger=run.ledger.as_dict(),
        started=run.started,
    )  # fmt: skip


def describe_round(run: Run) -> RoundRecord:
    """Return the last round of a run."""
    metrics = run.history[-1]
    return RoundRecord(metrics["round"], run.rounds, metrics, run.ledger.as_dict())


def describe_end(run: Run, values: Mapping[str, Any]) -> Summary:
    """Return the summary of a run, with its history and its ledger."""
    ledger = {**run.ledger.as_dict(), "published": published_figure(run)}
    return Summary(values, tuple(run.history), ledger)
