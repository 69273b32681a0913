"""Losses whose gradient is a chosen direction, through the hooks that a run's examples go through.

A trained linear layer is called on inputs and weighed by output gradients whose product over the
positions is the direction: the layer's per-example gradient hook then computes exactly it. The loss
is the linear function <v, theta> of what trains.
"""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedsvd.adapters.linear import FactorLinear

# A parameter by its name, and where it lives: (module, "weight" or "bias").
Places = dict[str, tuple[nn.Module, str]]


def places(model: nn.Module, named: Mapping[str, nn.Parameter]) -> Places:
    """Return the module and attribute of each named parameter."""
    found: dict[int, tuple[nn.Module, str]] = {}
    for module in model.modules():
        for attribute, p in module.named_parameters(recurse=False):
            found[id(p)] = (module, attribute)
    return {name: found[id(p)] for name, p in named.items()}


def linear_losses(places: Places, directions: Mapping[str, Tensor]) -> Tensor:
    """Return the losses (n,) of n examples with the gradients `directions[name]` (n, *shape).

    `directions` holds every parameter that trains. Linear layers are called, so that their hooks
    fire; other kinds of layer get `grad_sample` where a hook would have put it.
    """
    linear: dict[int, dict[str, Tensor]] = {}
    layers: dict[int, FactorLinear] = {}
    n = len(next(iter(directions.values())))
    total = next(iter(directions.values())).new_zeros(n)
    for name, direction in directions.items():
        module, attribute = places[name]
        if isinstance(module, FactorLinear):
            layers[id(module)] = module
            linear.setdefault(id(module), {})[attribute] = direction
        else:
            total = total + _Direct.apply(getattr(module, attribute), direction)
    for key, module in layers.items():
        inputs, weights = _factored(module, linear[key].get("weight"), linear[key].get("bias"))
        total = total + (module(inputs) * weights).flatten(start_dim=1).sum(dim=1)
    return total


def _factored(
    layer: FactorLinear, weight: Tensor | None, bias: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Return inputs (n, t, in) and output gradients (n, t, out) with sum_t g_t x_t^T = `weight`.

    The shorter side of the matrix becomes the positions. One more position with input 0 brings the
    bias' gradient, sum_t g_t, to `bias`, or to 0 if there is none to reach.
    """
    n = len(weight if weight is not None else bias)  # type: ignore[arg-type]
    out, width = layer.weight.shape
    if weight is None:
        weight = layer.weight.new_zeros(n, out, width)
    if width <= out:
        inputs = torch.eye(width).to(weight).expand(n, -1, -1)
        gradients = weight.mT
    else:
        inputs = weight
        gradients = torch.eye(out).to(weight).expand(n, -1, -1)
    if layer.bias is None:
        return inputs, gradients
    last = -gradients.sum(dim=1) + (0 if bias is None else bias)
    inputs = torch.cat([inputs, inputs.new_zeros(n, 1, width)], dim=1)
    return inputs, torch.cat([gradients, last.unsqueeze(1)], dim=1)


class _Direct(torch.autograd.Function):
    """<v_i, p> for each example, with v_i as the example's gradient."""

    @staticmethod
    def forward(ctx: Any, p: Tensor, direction: Tensor) -> Tensor:
        ctx.parameter = p
        ctx.save_for_backward(direction)
        return direction.flatten(start_dim=1) @ p.detach().flatten()

    @staticmethod
    def backward(ctx: Any, upstream: Tensor) -> Any:
        (direction,) = ctx.saved_tensors
        each = direction * upstream.view(-1, *(1,) * (direction.ndim - 1))
        ctx.parameter.grad_sample = each
        return each.sum(dim=0), None


def split(flat: Tensor, layout: Iterable[tuple[str, torch.Size]]) -> dict[str, Tensor]:
    """Return rows of flat gradients (n, d) as (n, *shape) tensors by name."""
    shapes = list(layout)
    parts = flat.split([shape.numel() for _, shape in shapes], dim=1)
    return {
        name: part.reshape(-1, *shape) for (name, shape), part in zip(shapes, parts, strict=True)
    }
