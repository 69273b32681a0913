"""A frozen linear layer with what an adapter adds to it."""

from abc import ABC, abstractmethod
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedsvd.adapters.stored import expanded, is_stored
from fedsvd.errors import InputError
from fedsvd.lowrank import LowRank

NAME = "default"  # PEFT's name for the one adapter
LINEAR = (nn.Linear, Conv1D)


def weight_of(base: nn.Module) -> Tensor:
    """Return the weight of a linear layer as (d_out, d_in), sharing its memory.

    GPT-2's Conv1D stores it transposed. Of a layer that holds it in fewer bytes it is a copy in
    float32.
    """
    if is_stored(base):
        return expanded(base, torch.float32)
    weight: Tensor = base.weight  # type: ignore[assignment]
    return weight.detach().mT if isinstance(base, Conv1D) else weight.detach()


@torch.no_grad()
def set_weight(base: nn.Module, value: Tensor) -> None:
    """Overwrite the weight of a linear layer with a (d_out, d_in) value.

    Raises InputError for one that is held in fewer bytes: it could not hold the value.
    """
    refuse_stored(base)
    weight_of(base).copy_(value)


def refuse_stored(base: nn.Module) -> None:
    """Raise InputError for a layer whose frozen weight cannot be changed, as it is rounded."""
    if is_stored(base):
        raise InputError(
            "model.dtype, model.quantization: a frozen weight is to change that is held in fewer "
            "bytes than float32; set model.dtype=float32 and model.quantization=none"
        )


class Adapted(nn.Module, ABC):
    """What takes the place of a frozen linear layer, with PEFT's names for what both have.

    `forward` is base(x) + scale * update(dropout(x)), unless a subclass says otherwise.
    """

    def __init__(self, base: nn.Module, scale: float, dropout: float) -> None:
        super().__init__()
        self.base_layer = base
        self.scaling = {NAME: scale}
        self.dropout = nn.Dropout(dropout)

    def get_base_layer(self) -> nn.Module:
        """Return the frozen layer."""
        return self.base_layer

    @abstractmethod
    def trained(self) -> dict[str, nn.Parameter]:
        """Return what trains beside LoRA factors, by the last parts of names."""

    @abstractmethod
    def update(self, x: Tensor) -> Tensor:
        """Return what is added to the frozen layer's output, without the scale: (..., d_out)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the adapted layer's output (..., d_out)."""
        base: Tensor = self.base_layer(x)
        added = self.scaling[NAME] * self.update(self.dropout(x))
        return base + added.to(base.dtype)

    @torch.no_grad()
    def merged(self) -> Tensor:
        """Return the weight (d_out, d_in) of a plain layer that computes the same without dropout."""
        weight = weight_of(self.base_layer)
        eye = torch.eye(weight.shape[1], dtype=weight.dtype, device=weight.device)
        return weight + self.scaling[NAME] * self.update(eye).mT

    def change(self) -> LowRank | None:
        """Return factors, scale * B A = merged() - the pretrained weight, or None if unknown."""
        return None


@torch.no_grad()
def merged_weight(module: nn.Module) -> Tensor:
    """Return the weight (d_out, d_in) of a plain layer that computes what an adapted one does."""
    if isinstance(module, Adapted):
        return module.merged()
    layer: Any = module  # PEFT's
    A, B = layer.lora_A[NAME].weight, layer.lora_B[NAME].weight
    base = weight_of(layer.get_base_layer())
    return base + layer.scaling[NAME] * (B @ A).to(base.dtype)
