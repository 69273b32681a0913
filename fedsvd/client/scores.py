"""Figures of a state on rows of the task."""

from typing import TYPE_CHECKING

import numpy as np
import torch
from torch import Tensor

from fedsvd.lowrank import AdapterState

if TYPE_CHECKING:
    from fedsvd.client.worker import Worker

# Padded tokens of a batch that is evaluated: few fit a processor's caches, many fill a card.
TOKENS = {"cpu": 1024}
TOKENS_ELSEWHERE = 7680


def means(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the share of right labels in [0, 1] and the mean cross-entropy.

    `logits` are (n, K) and `labels` (n,) int64.
    """
    accuracy = (logits.argmax(dim=1) == labels).double().mean()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return {"accuracy": float(accuracy), "loss": float(loss)}


def evaluate_part(worker: "Worker", state: AdapterState, part: str) -> dict[str, float]:
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
