"""What an adapter may look at before it is attached: public texts through the bare model."""

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor

from fedsvd.adapters import calibration
from fedsvd.adapters.base import Inputs
from fedsvd.adapters.build import stand_ins
from fedsvd.data.task import Task
from fedsvd.data.tokens import Tokens
from fedsvd.models.base import Model
from fedsvd.objectives.build import objective_of
from fedsvd.settings import Settings


@dataclass(frozen=True)
class PublicTexts:
    """Public texts of a task, and the model with its head at their start, without an adapter."""

    settings: Settings
    task: Task
    tokens: Tokens
    tokenizer: Any
    model: Model
    device: torch.device

    def inputs(self, names: Iterable[str]) -> Mapping[str, Inputs]:
        """Return what the named layers see of `adapter.calibration` public texts.

        Without privacy and where none are set aside, the validation part stands for them; no label is
        looked at.
        """
        public = self.task.public if len(self.task.public) else self.task.validation
        rows = public[: self.settings.adapter.calibration].tolist()
        batches = (
            self.tokens.batch(g, self.device).inputs for g in self._groups(self.tokens, rows)
        )
        return calibration.measure(self.model.backbone, names, batches)

    def gradients(self, names: Iterable[str]) -> Mapping[str, Tensor]:
        """Return the mean gradient dL/dW (d_out, d_in), float64, of the named layers' weights.

        L is the objective's loss, computed in float32, of `adapter.calibration` public texts; where
        no rows are public, of the texts of the labels, all of them; where there are none of these
        either, without privacy, of training texts.
        """
        tokens, rows = self._labelled()
        return calibration.mean_gradients(self.model.backbone, names, self._losses(tokens, rows))

    def _labelled(self) -> tuple[Tokens, list[int]]:
        most, task = self.settings.adapter.calibration, self.task
        if len(task.public):
            return self.tokens, spread(task.public.tolist(), most)
        described = objective_of(self.settings.task).described(self.settings, task, self.tokenizer)
        if described is not None:
            return described, list(range(len(described.labels)))
        assert "training" in stand_ins(self.settings)  # anything else was refused
        return self.tokens, spread(task.train.tolist(), most)

    def _losses(self, tokens: Tokens, rows: Sequence[int]) -> Iterator[Tensor]:
        for group in self._groups(tokens, rows):
            batch = tokens.batch(group, self.device)
            yield objective_of(self.settings.task).losses(self.model, batch)

    def _groups(self, tokens: Tokens, rows: Sequence[int]) -> Iterator[list[int]]:
        return tokens.microbatches(rows, self.settings.training.budget)


def spread(rows: Sequence[int], most: int) -> list[int]:
    """Return at most `most` of the rows, evenly spaced: a source may be sorted by label."""
    count = min(most, len(rows))
    return [rows[i * len(rows) // count] for i in range(count)]
