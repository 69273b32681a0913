"""A frozen backbone with factors and an output: what every objective's model has in common."""

from abc import ABC, abstractmethod
from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn

from fedsvd.adapters import lora
from fedsvd.lowrank import AdapterState
from fedsvd.models.lower import Lower


class Model(nn.Module, ABC):
    """head(backbone(tokens)), of which the adapters' factors train, and the head if it is to.

    The backbone runs under bf16 autocast if `precision` is "bf16". What adapted layers see of
    padding is zero, selected and not multiplied, so that nothing that trains can make padding
    overflow. With a `lower` part set off, the backbone can run from the hidden states that enter the
    blocks above it.
    """

    def __init__(
        self, attached: lora.Attached, head: nn.Module, *, precision: str, head_trains: bool
    ) -> None:
        super().__init__()
        self.backbone = attached.model
        self.head = head.requires_grad_(head_trains).train(head_trains)
        self.layers = attached.layers
        self.precision = precision
        # A frozen head is not part of the state: every process derives the same one.
        trained = head.named_parameters() if head_trains else ()
        extra = {f"head.{n}": p.detach().clone() for n, p in trained}
        own = attached.initial.extra
        self.initial = replace(attached.initial, extra={**own, **extra})
        self.penalty, self.decoupled = attached.penalty, attached.decoupled
        self.lower: Lower | None = None
        self._valid: Tensor | None = None  # (n, t, 1) of the batch under way: which are tokens
        for layer in self.layers.values():
            layer.register_forward_pre_hook(self._select)

    @abstractmethod
    def features(self, inputs: Mapping[str, Tensor], entering: Tensor | None = None) -> Tensor:
        """Return what the head sees of each example, (n, ...), for padded inputs (n, t).

        What padding holds is not in it. `entering` (n, t, d), if given, enters the first block above
        `lower`, which is not run.
        """

    @abstractmethod
    def subspaces(self) -> list[nn.Parameter]:
        """Return the bases of subspaces that train on their manifold."""

    @abstractmethod
    def settle(self) -> None:
        """Put right what follows from the head's parameters, after they were written."""

    def hidden(self, inputs: Mapping[str, Tensor], entering: Tensor | None = None) -> Tensor:
        """Return the backbone's last hidden states (n, t, d), as it gives them."""
        mask = inputs["attention_mask"]
        self._valid = mask.bool().unsqueeze(-1) if len(mask) > 1 else None  # one has no padding
        try:
            with self._whole_or_above(entering), self.autocast(mask):
                found: Tensor = self.backbone(**inputs).last_hidden_state
                return found
        finally:
            self._valid = None  # the backbone is used on its own too

    def entering(self, inputs: Mapping[str, Tensor]) -> Tensor:
        """Return what enters the first block above `lower`, (n, t, d), without dropout.

        The tensors are plain ones also in inference mode, so that they can enter a step.
        """
        assert self.lower is not None
        drops = self.backbone.training
        if drops:
            self.set_dropout(False)
        try:
            with self.lower.below() as seen, torch.no_grad():
                with self.autocast(inputs["attention_mask"]):
                    self.backbone(**inputs)
                return seen()
        finally:
            if drops:
                self.set_dropout(True)

    def _whole_or_above(self, entering: Tensor | None) -> AbstractContextManager[None]:
        if entering is None:
            return nullcontext() if self.lower is None else self.lower.whole()
        assert self.lower is not None
        return self.lower.above(entering)

    def autocast(self, near: Tensor) -> torch.autocast:
        """Return what lets frozen products run in the model's precision on a tensor's device."""
        return torch.autocast(near.device.type, torch.bfloat16, enabled=self.precision == "bf16")

    def _select(self, layer: nn.Module, inputs: tuple[Any, ...]) -> tuple[Any, ...]:
        """Put zeros where an adapted layer's input (n, t, d) is padding."""
        x, valid = inputs[0], self._valid
        if valid is None or x.ndim != 3 or x.shape[:2] != valid.shape[:2]:
            return inputs
        return (torch.where(valid, x, 0), *inputs[1:])

    def trainable(self) -> dict[str, nn.Parameter]:
        """Return what trains, by the names of `AdapterState.tensors`."""
        named = lora.named_parameters(self.layers)
        named.update({f"head.{n}": p for n, p in self.head.named_parameters()})
        return {name: p for name, p in named.items() if p.requires_grad}

    def set_dropout(self, active: bool) -> None:
        """Switch the dropout of backbone, adapter and head on for training, off for evaluation."""
        self.backbone.train(active)
        self.head.train(active)
        for module in self.modules():
            # Opacus's hooks look at the mode of what trains, whatever the dropout does.
            if any(p.requires_grad for p in module.parameters(recurse=False)):
                module.train()

    @torch.no_grad()
    def write(self, state: AdapterState) -> None:
        """Copy a state into the model, in place."""
        lora.write_state(self.layers, state)
        for name, parameter in self.head.named_parameters():
            if parameter.requires_grad:
                parameter.copy_(state.extra[f"head.{name}"])
        self.settle()

    def read(self, state: AdapterState) -> AdapterState:
        """Return `state` with the model's current values of what trains."""
        return state.update({n: p.detach().clone() for n, p in self.trainable().items()})
