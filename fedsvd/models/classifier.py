"""A sequence classifier: frozen backbone with factors, pooling, head."""

from collections.abc import Mapping
from contextlib import AbstractContextManager, nullcontext
from dataclasses import replace
from typing import Any, final

import torch
from torch import Tensor, nn

from fedsvd.adapters import lora
from fedsvd.lowrank import AdapterState
from fedsvd.models.fixed_heads import GrassmannHead
from fedsvd.models.lower import Lower


@final
class Classifier(nn.Module):
    """logits = scale * head(pool(backbone(tokens))).

    The backbone runs under bf16 autocast if `precision` is "bf16"; pooling, head and everything
    that trains are float32 (or the parameters' dtype). What adapted layers see of padding is zero,
    selected and not multiplied, so that nothing that trains can make padding overflow. With a
    `lower` part set off, the backbone can run from the hidden states that enter the blocks above it.
    """

    def __init__(
        self,
        attached: lora.Attached,
        head: nn.Module,
        *,
        pooling: str,
        normalize: bool,
        scale: float,
        precision: str,
        head_trains: bool,
    ) -> None:
        super().__init__()
        self.backbone = attached.model
        self.head = head.requires_grad_(head_trains).train(head_trains)
        self.on_manifold = head_trains and isinstance(head, GrassmannHead)
        self.layers = attached.layers
        self.pooling, self.normalize, self.scale = pooling, normalize, scale
        self.precision = precision
        # A frozen head is not part of the state: every process derives the same one.
        extra = {f"head.{n}": p.detach().clone() for n, p in head.named_parameters()}
        own = attached.initial.extra
        self.initial = replace(attached.initial, extra={**own, **(extra if head_trains else {})})
        self.penalty, self.decoupled = attached.penalty, attached.decoupled
        self.lower: Lower | None = None
        self._valid: Tensor | None = None  # (n, t, 1) of the batch under way: which are tokens
        for layer in self.layers.values():
            layer.register_forward_pre_hook(self._select)

    def forward(self, inputs: Mapping[str, Tensor], entering: Tensor | None = None) -> Tensor:
        """Return logits (n, K) in float32 for padded inputs (n, t).

        `entering` (n, t, d), if given, enters the first block above `lower`, which is not run.
        """
        logits: Tensor = self.scale * self.head(self.features(inputs, entering))
        return logits

    def features(self, inputs: Mapping[str, Tensor], entering: Tensor | None = None) -> Tensor:
        """Return the pooled features (n, d) that the head sees."""
        mask = inputs["attention_mask"]
        self._valid = mask.bool().unsqueeze(-1) if len(mask) > 1 else None  # one has no padding
        try:
            with self._whole_or_above(entering), self._autocast(mask):
                hidden = self.backbone(**inputs).last_hidden_state
        finally:
            self._valid = None  # the backbone is used on its own too
        dtype = next(self.head.parameters()).dtype
        features = pool(hidden.to(dtype), mask, self.pooling)
        return nn.functional.normalize(features, dim=1) if self.normalize else features

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
                with self._autocast(inputs["attention_mask"]):
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

    def _autocast(self, mask: Tensor) -> torch.autocast:
        return torch.autocast(mask.device.type, torch.bfloat16, enabled=self.precision == "bf16")

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

    def subspaces(self) -> list[nn.Parameter]:
        """Return the bases of subspaces that train on their manifold: those of a Grassmann head."""
        head = self.head
        return [head.subspaces] if isinstance(head, GrassmannHead) and self.on_manifold else []

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
        if isinstance(self.head, GrassmannHead):
            self.head.settle()

    def read(self, state: AdapterState) -> AdapterState:
        """Return `state` with the model's current values of what trains."""
        return state.update({n: p.detach().clone() for n, p in self.trainable().items()})


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Reduce hidden states (n, t, d) under a mask (n, t) of 0 and 1 to (n, d).

    "mean" averages the tokens that are not padding, "cls" takes the first, "last" the last of them.
    Whatever padding holds, also what is not finite, is not looked at.
    """
    if pooling == "mean":
        weight = mask.unsqueeze(-1)
        selected = torch.where(weight.bool(), hidden, 0)
        return selected.sum(dim=1) / weight.sum(dim=1).to(hidden.dtype)
    if pooling == "cls":
        return hidden[:, 0]
    last = mask.sum(dim=1) - 1
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
