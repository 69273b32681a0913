"""Trainable modules other than a linear layer, with their exact per-example gradients."""

from typing import final

import torch
from opacus.grad_sample import register_grad_sampler
from torch import Tensor, nn

from fedsvd.adapters.linear import let_gradient_hooks_fire


@final
class FactorScale(nn.Module):
    """y = weight * x with a trainable vector of the size of x's last axis: a diagonal matrix."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().contiguous())
        self.register_forward_pre_hook(let_gradient_hooks_fire)

    def forward(self, x: Tensor) -> Tensor:
        """Return weight * x, (..., d)."""
        return self.weight * x


@register_grad_sampler(FactorScale)
def scale_grad_sample(
    layer: FactorScale, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Return the gradient of every example, (n, d), from x and backprops (n, ..., d)."""
    dtype = layer.weight.dtype
    x, g = activations[0].to(dtype), backprops.to(dtype)
    return {layer.weight: torch.einsum("n...d,n...d->nd", x, g)}


@final
class FactorMix(nn.Module):
    """y[..., p, i, :] = sum_q weight[i, p, q] x[..., q, i, :]: a Kronecker product's left factors."""

    def __init__(self, weight: Tensor) -> None:
        super().__init__()
        self.weight = nn.Parameter(weight.detach().clone().contiguous())
        self.register_forward_pre_hook(let_gradient_hooks_fire)

    def forward(self, x: Tensor) -> Tensor:
        """Mix blocks: x (..., q, i, r) to (..., p, i, r) with weight (i, p, q)."""
        return torch.einsum("ipq,...qir->...pir", self.weight, x)


@register_grad_sampler(FactorMix)
def mix_grad_sample(
    layer: FactorMix, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Return the gradient of every example, (n, i, p, q)."""
    dtype = layer.weight.dtype
    x, g = activations[0].to(dtype), backprops.to(dtype)
    return {layer.weight: torch.einsum("n...pir,n...qir->nipq", g, x)}
