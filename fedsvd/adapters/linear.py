"""Linear layers whose per-example gradients are float32 whatever the precision around them."""

from typing import Any, final

import torch
from opacus.grad_sample import register_grad_sampler
from torch import Tensor, nn


@final
class FactorLinear(nn.Linear):
    """A trainable linear layer: a LoRA factor, or the head.

    It computes what `nn.Linear` computes. It differs in its per-example gradients, which Opacus
    takes through `factor_grad_sample`: under bf16 autocast activations and backpropagated gradients
    arrive in bf16 and are multiplied in float32.
    """

    weight: nn.Parameter

    def __init__(self, in_features: int, out_features: int, bias: bool, device: Any = None) -> None:
        super().__init__(in_features, out_features, bias=bias, device=device)
        self.register_forward_pre_hook(let_gradient_hooks_fire)

    def reset_parameters(self) -> None:
        """Start at zeros: torch would draw from its global generator what is overwritten anyway."""
        nn.init.zeros_(self.weight)
        if self.bias is not None:
            nn.init.zeros_(self.bias)

    @classmethod
    def of(cls, weight: Tensor) -> "FactorLinear":
        """Return a layer without bias that holds a copy of `weight` (d_out, d_in), in its dtype."""
        layer = cls(weight.shape[1], weight.shape[0], bias=False, device=weight.device)
        layer.weight = nn.Parameter(weight.detach().clone().contiguous())
        return layer


def let_gradient_hooks_fire(module: nn.Module, inputs: tuple[Tensor, ...]) -> tuple[Tensor, ...]:
    """Mark a constant input as differentiable, as torch's full backward hooks need one that is.

    That is the case in the lowest adapted layer, and at the head when nothing below it trains.
    The gradient that this costs has the size of the input: (n, t, r) for a factor B.
    """
    (x,) = inputs
    if torch.is_grad_enabled() and not x.requires_grad:
        return (x.detach().requires_grad_(True),)
    return inputs


@register_grad_sampler(FactorLinear)
def factor_grad_sample(
    layer: FactorLinear, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Return the gradient of every example: (n, out, in) for the weight, (n, out) for the bias.

    `activations[0]` is (n, ..., in), `backprops` (n, ..., out); positions between are summed over.
    """
    dtype = layer.weight.dtype
    x, g = activations[0].to(dtype), backprops.to(dtype)
    found: dict[Tensor, Tensor] = {}
    if layer.weight.requires_grad:
        # (n, i, o) is the faster product when r = i is small; its transpose is not copied.
        n = len(g)
        x, flat = x.reshape(n, -1, x.shape[-1]), g.reshape(n, -1, g.shape[-1])
        found[layer.weight] = (x.mT @ flat).mT if x.shape[-1] < g.shape[-1] else flat.mT @ x
    if layer.bias is not None and layer.bias.requires_grad:
        found[layer.bias] = torch.einsum("n...o->no", g)
    return found
