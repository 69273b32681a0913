"""Figures of a state on a part of the task."""

from typing import Any

import numpy as np
import torch

from fedsvd.client.worker import Worker
from fedsvd.lowrank import AdapterState


def evaluate_part(
    worker: Worker, state: AdapterState, part: str,
    owners: dict[str, dict[str, float]] | None = None, details: dict[str, Any] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Return loss and metrics of a state on a part of the task, and `examples`, on how many rows.

    `part` is "validation", "test" or "subset", the rows of validation that are evaluated while a run
    goes. Of validation, where the subset is less than all, also the subset's own: `subset_loss` and
    so on. `owners`, if given, gets the figures of each client's rows by its id, where the data says
    whose each row is; `details`, if given, gets what the objective tells of the part beyond them.
    """
    task, subset = worker.task, worker.subset
    rows = {"test": task.test, "subset": subset}.get(part, task.validation)
    measure = worker.objective.measure
    outputs, labels = worker.scored(state, rows)
    found = {**measure(outputs, labels), "examples": len(rows)}
    if details is not None and len(rows):
        details.update(worker.objective.details(outputs, labels))
    if owners is not None and task.owners:
        held = np.array([task.owners[row] for row in rows])
        for owner in np.unique(held).tolist():
            own = torch.as_tensor(held == owner)
            count = int(own.sum())
            owners[owner] = {**measure(outputs[own], labels[own]), "examples": count}
    if part == "validation" and len(subset) < len(rows):
        inner = torch.as_tensor(np.isin(rows, subset))
        its = {**measure(outputs[inner], labels[inner]), "examples": len(subset)}
        found.update({f"subset_{key}": value for key, value in its.items()})
    return found
