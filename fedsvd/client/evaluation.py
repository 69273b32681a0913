"""Figures of a state on a part of the task."""

from collections.abc import Iterable, Sequence
from statistics import fmean
from typing import Any

import numpy as np
import torch

from fedsvd.client.questions import asked
from fedsvd.client.worker import Worker
from fedsvd.lowrank import AdapterState
from fedsvd.models.language_model import LanguageModel
from fedsvd.objectives.answers import marks
from fedsvd.objectives.generation import continued
from fedsvd.objectives.metric import Metric

ANSWERED = "answered"  # beside figures of answers: how many there are


def evaluate_part(
    worker: Worker, state: AdapterState, part: str,
    owners: dict[str, dict[str, float]] | None = None, details: dict[str, Any] | None = None,
    answers: bool = False,
) -> dict[str, float]:  # fmt: skip
    """Return loss and metrics of a state on a part of the task, and `examples`, on how many rows.

    `part` is "validation", "test" or "subset", the rows of validation that are evaluated while a run
    goes. Of validation, where the subset is less than all, also the subset's own: `subset_loss` and
    so on. `owners`, if given, gets the figures of each client's rows by its id, where the data says
    whose each row is; `details`, if given, gets what the objective tells of the part beyond them.
    With `answers` the figures of generated answers are there too, and `answered`, on how many rows
    they are: of those that `recorder.answers` asks for.
    """
    task, subset = worker.task, worker.subset
    rows = {"test": task.test, "subset": subset}.get(part, task.validation)
    measure = worker.objective.measure
    outputs, labels = worker.scored(state, rows)
    generated = worker.objective.generated
    said = answer(worker, state, part) if answers and generated else {}
    found = {**measure(outputs, labels), "examples": len(rows)}
    found.update(of_answers(said.values(), generated))
    if details is not None and len(rows):
        details.update(worker.objective.details(outputs, labels))
    if owners is not None and task.owners:
        held = np.array([task.owners[row] for row in rows])
        for owner in np.unique(held).tolist():
            own = torch.as_tensor(held == owner)
            count = int(own.sum())
            its = {**measure(outputs[own], labels[own]), "examples": count}
            its.update(of_answers([said[i] for i in rows[held == owner] if i in said], generated))
            owners[owner] = its
    if part == "validation" and len(subset) < len(rows):
        inner = torch.as_tensor(np.isin(rows, subset))
        its = {**measure(outputs[inner], labels[inner]), "examples": len(subset)}
        found.update({f"subset_{key}": value for key, value in its.items()})
    return found


def answer(worker: Worker, state: AdapterState, part: str) -> dict[int, tuple[float, float]]:
    """Return exact match and F1 of a state's answers to the questions of a part, by row.

    They are generated in float32, as from an exported model, with the likeliest token each time.
    """
    settings, model = worker.settings, worker.model
    told = asked(settings, worker.task, worker.tokenizer, part)
    if not told:
        return {}
    assert isinstance(model, LanguageModel)
    model.write(state)
    model.set_dropout(False)
    prompts = [ids for ids, _ in told.values()]
    said = continued(model.whole, worker.tokenizer, prompts, settings.recorder.answer_tokens)
    return dict(zip(told, marks(said, [right for _, right in told.values()]), strict=True))


def of_answers(each: Iterable[tuple[float, ...]], figures: Sequence[Metric]) -> dict[str, float]:
    """Return the mean of each figure over answers, and `answered`, their number; {} for none."""
    found = list(each)
    if not found:
        return {}
    means = {
        m.name: fmean(values) for m, values in zip(figures, zip(*found, strict=True), strict=True)
    }
    return {**means, ANSWERED: len(found)}
