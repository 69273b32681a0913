"""Figures of a state on a part of the task."""

import numpy as np
import torch

from fedsvd.client.scores import means
from fedsvd.client.worker import Worker
from fedsvd.lowrank import AdapterState


def evaluate_part(worker: Worker, state: AdapterState, part: str) -> dict[str, float]:
    """Return accuracy and loss of a state on a part of the task, and `examples`, on how many rows.

    `part` is "validation", "test" or "subset", the rows of validation that are evaluated while a run
    goes. Of validation, where the subset is less than all, also the subset's own: `subset_accuracy`,
    `subset_loss`, `subset_examples`.
    """
    task, subset = worker.task, worker.subset
    rows = {"test": task.test, "subset": subset}.get(part, task.validation)
    logits, labels = worker.scored(state, rows)
    found = {**means(logits, labels), "examples": len(rows)}
    if part == "validation" and len(subset) < len(rows):
        inner = torch.as_tensor(np.isin(rows, subset))
        its = {**means(logits[inner], labels[inner]), "examples": len(subset)}
        found.update({f"subset_{key}": value for key, value in its.items()})
    return found
