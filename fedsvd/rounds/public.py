"""What the server may look at of a run's model: public texts through it, and its frozen weights."""

from collections.abc import Collection, Mapping
from typing import final

import torch
from torch import Tensor

from fedsvd.adapters import calibration, lora
from fedsvd.adapters.lora import frozen_weight
from fedsvd.client.worker import Worker
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.pair import kind_of
from fedsvd.strategies.base import PublicView


@final
class WorkerView(PublicView):
    """The public texts of `data.public` and the frozen weights, through a process's one model.

    The model is left with the state that was looked at; every use of it writes its own.
    """

    def __init__(self, worker: Worker) -> None:
        self._worker = worker
        self._moments: dict[str, Tensor] = {}

    def gradients(
        self, state: AdapterState, kinds: Collection[str] | None = None
    ) -> tuple[float, dict[str, Tensor]]:
        """Return the mean loss on the public texts and its gradient in everything that trains.

        With `kinds`, among "A", "B" and "extra", in these instead.
        """
        worker, rows = self._worker, self._worker.task.public.tolist()
        worker.model.write(state)
        named = worker.model.trainable()
        if kinds is not None:
            named |= lora.named_parameters(worker.model.layers)
            named = {n: p for n, p in named.items() if kind_of(n) in kinds and n in state.tensors()}
        resting = [p.requires_grad_() for p in named.values() if not p.requires_grad]
        if worker.hooks is not None:
            worker.hooks.disable_hooks()  # nobody's gradient need be told from another's here
        try:
            total = 0.0
            sums = {name: torch.zeros_like(p) for name, p in named.items()}
            for group in worker.tokens.microbatches(rows, worker.settings.training.budget):
                loss = worker.losses(group).sum() / len(rows)
                total += float(loss.detach())
                for p in named.values():
                    p.grad = None
                loss.backward()  # blocks that run again put gradients on parameters alone
                for name, p in named.items():
                    assert p.grad is not None
                    sums[name] += p.grad
                    p.grad = None
        finally:
            for parameter in resting:
                parameter.requires_grad_(False)
            if worker.hooks is not None:
                worker.hooks.enable_hooks()
        return total, sums

    def weight_gradients(self, state: AdapterState) -> Mapping[str, Tensor]:
        """Return dL/dW (d_out, d_in), float64, of each layer's weight W = W0 + B A at a state."""
        worker = self._worker
        worker.model.write(state)
        places = {m: name for name, m in worker.model.backbone.named_modules()}
        paths = {
            name: places[m.get_base_layer()]  # type: ignore[operator]
            for name, m in worker.model.layers.items()
        }
        groups = worker.tokens.microbatches(
            worker.task.public.tolist(), worker.settings.training.budget
        )
        if worker.hooks is not None:
            worker.hooks.disable_hooks()
        try:
            losses = (worker.losses(group) for group in groups)
            found = calibration.mean_gradients(worker.model.backbone, paths.values(), losses)
        finally:
            if worker.hooks is not None:
                worker.hooks.enable_hooks()
        return {name: found[path] for name, path in paths.items()}

    def weight(self, layer: str) -> Tensor:
        """Return a layer's frozen weight (d_out, d_in), without any update W of it."""
        return frozen_weight(self._worker.model.layers[layer])

    def moment(self, layer: str) -> Tensor:
        """Return E[x x^T] of a layer's inputs over the public tokens, at the initial state."""
        if not self._moments:
            worker = self._worker
            worker.model.write(worker.initial)
            places = {m: name for name, m in worker.model.backbone.named_modules()}
            paths = {name: places[m] for name, m in worker.model.layers.items()}
            groups = worker.tokens.microbatches(
                worker.task.public.tolist(), worker.settings.training.budget
            )
            batches = (worker.tokens.batch(g, worker.device).inputs for g in groups)
            found = calibration.measure(worker.model.backbone, paths.values(), batches)
            self._moments = {name: found[path].moment for name, path in paths.items()}
        return self._moments[layer]
