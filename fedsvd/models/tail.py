"""What follows attention in a frozen block of BERT's form, as one operation.

A block there is attention, and then all else: a dense layer, a norm, two dense layers around an
activation, a norm, with the inputs of both norms added up. Where none of that trains, its backward
pass needs nothing but the gradient of its two inputs: no graph of a dozen nodes, no tensor of its
own for every sum, and an activation's slope is worth computing beside its value. Of the last block
nothing but the first token is computed where nothing else is looked at.
"""

from collections.abc import Callable
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F

aten: Any = torch.ops.aten
# GELU by tanh is x sigmoid(x (C + K x^2)) with C = sqrt(8 / pi), K = 0.044715 C.
C = 1.5957691216057308
K = 0.044715 * C


@dataclass(frozen=True)
class Parts:
    """The modules of one block: y = norm(dense(context) + hidden), norm(down(act(up(y))) + y)."""

    dense: nn.Linear
    norm: nn.LayerNorm
    up: nn.Linear
    act: nn.Module
    down: nn.Linear
    last: nn.LayerNorm
    dropouts: tuple[nn.Dropout, nn.Dropout]
    holders: tuple[nn.Module, nn.Module]  # of up and act; of down and last

    @property
    def plain(self) -> bool:
        """Whether the modules are what they look like, frozen, and watched by nobody."""
        modules = (self.dense, self.norm, self.up, self.act, self.down, self.last)
        kinds = (nn.Linear, nn.LayerNorm, nn.Linear, self.act.__class__, nn.Linear, nn.LayerNorm)
        return (
            all(type(m) is kind for m, kind in zip(modules, kinds, strict=True))
            and not any(_watched(m) for m in (*modules, *self.holders))
            and not any(p.requires_grad for m in modules for p in m.parameters())
        )


def _watched(module: nn.Module) -> bool:
    given: Any = module
    return bool(
        given._forward_hooks
        or given._forward_pre_hooks
        or given._backward_hooks
        or given._backward_pre_hooks
    )


def parts_of(block: nn.Module) -> Parts | None:
    """Return the modules of a block of BERT's form, None for any other."""
    given: Any = block
    try:
        first, inner, second = given.attention.output, given.intermediate, given.output
        found = Parts(
            first.dense, first.LayerNorm, inner.dense, inner.intermediate_act_fn, second.dense,
            second.LayerNorm, (first.dropout, second.dropout), (inner, second),
        )  # fmt: skip
    except AttributeError:
        return None
    if type(block).__name__ not in ("BertLayer", "RobertaLayer") or not known(found.act):
        return None
    return found


@final
class Tail:
    """Takes the place of what follows attention in a block, for as long as that is frozen.

    `first`: of the block's output (n, t, d) nothing but [:, :1] is asked for. Names, hooks and modes
    of the modules stay as they are. In float32 on the CPU, without dropout, it is one operation;
    otherwise the modules run as they did. The value differs from theirs by rounding where the
    activation is GELU by tanh, or where `first` makes products of fewer rows.
    """

    def __init__(self, block: nn.Module, parts: Parts, first: bool) -> None:
        self._parts, self._first = parts, first
        known: Any = block
        self._block, self._attention = known, known.attention.output
        self._one = False
        self._before = self._attention.forward, self._block.feed_forward_chunk
        self._attention.forward = self._after_attention
        self._block.feed_forward_chunk = self._feed_forward

    def remove(self) -> None:
        """Give the block its own functions back."""
        self._attention.__dict__.pop("forward", None)
        self._block.__dict__.pop("feed_forward_chunk", None)

    def _after_attention(self, hidden_states: Tensor, input_tensor: Tensor) -> Tensor:
        if self._first:
            hidden_states, input_tensor = hidden_states[:, :1], input_tensor[:, :1]
        self._one = self._fits(hidden_states, input_tensor)
        if self._one:
            return after_attention(hidden_states, input_tensor, self._parts)
        found: Tensor = self._before[0](hidden_states, input_tensor)
        return found

    def _feed_forward(self, attention_output: Tensor) -> Tensor:
        if self._one:
            self._one = False
            return attention_output  # that of the whole tail
        found: Tensor = self._before[1](attention_output)
        return found

    def _fits(self, context: Tensor, hidden: Tensor) -> bool:
        parts = self._parts
        return (
            context.device.type == "cpu"
            and context.dtype == hidden.dtype == parts.dense.weight.dtype == torch.float32
            and not torch.is_autocast_enabled("cpu")
            and not any(d.training and d.p > 0 for d in parts.dropouts)
            and parts.plain
        )


def after_attention(context: Tensor, hidden: Tensor, parts: Parts) -> Tensor:
    """Return the block's output (n, t, d) for what attention gives and what it was given."""
    found: Tensor = _AfterAttention.apply(context, hidden, parts)
    return found


class _AfterAttention(torch.autograd.Function):
    """In its forward pass gradients are off, so that sums can be taken in place."""

    @staticmethod
    def forward(ctx: Any, context: Tensor, hidden: Tensor, parts: Parts) -> Tensor:
        backward = any(ctx.needs_input_grad)
        shape, width = context.shape, hidden.shape[-1]
        x = _linear(parts.dense, context.reshape(-1, context.shape[-1])).add_(
            hidden.reshape(-1, width)
        )
        y, *of_norm = _norm(parts.norm, x)
        u = _linear(parts.up, y)
        activated, slope = _activated(parts.act, u, backward)
        z = _linear(parts.down, activated).add_(y)
        out, *of_last = _norm(parts.last, z)
        if backward:
            ctx.parts, ctx.shapes = parts, (shape, hidden.shape)
            ctx.save_for_backward(x, *of_norm, slope, z, *of_last)
        return out.view(*shape[:-1], width)

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, given: Tensor) -> tuple[Tensor | None, Tensor | None, None]:
        parts, (x, mean, rstd, slope, z, last_mean, last_rstd) = ctx.parts, ctx.saved_tensors
        g = given.reshape(-1, given.shape[-1])
        g = _norm_backward(parts.last, g, z, last_mean, last_rstd)
        through = _times_slope(parts.act, torch.mm(g, parts.down.weight), slope)
        # Summed within the product: what is added is not needed any more.
        g = g.addmm_(through, parts.up.weight)
        g = _norm_backward(parts.norm, g, x, mean, rstd)
        shape, of_hidden = ctx.shapes
        to_context = (
            torch.mm(g, parts.dense.weight).view(shape) if ctx.needs_input_grad[0] else None
        )
        return to_context, g.view(of_hidden) if ctx.needs_input_grad[1] else None, None


def _linear(layer: nn.Linear, x: Tensor) -> Tensor:
    return F.linear(x, layer.weight, layer.bias)


def _norm(layer: nn.LayerNorm, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    found: tuple[Tensor, Tensor, Tensor] = aten.native_layer_norm(
        x, layer.normalized_shape, layer.weight, layer.bias, layer.eps
    )
    return found


def _norm_backward(layer: nn.LayerNorm, g: Tensor, x: Tensor, mean: Tensor, rstd: Tensor) -> Tensor:
    found: Tensor = aten.native_layer_norm_backward(
        g, x, layer.normalized_shape, mean, rstd, layer.weight, layer.bias, [True, False, False]
    )[0]
    return found


def _activated(act: nn.Module, u: Tensor, backward: bool) -> tuple[Tensor, Tensor]:
    """Return act(u), and what `_times_slope` needs of it; `u` may be used up."""
    if _by_erf(act):
        return F.gelu(u), u
    # PyTorch's kernel takes the hyperbolic tangent in both passes, each at thrice an exponential.
    square = u * u
    share = (square * K).add_(C).mul_(u).sigmoid_()
    if backward:
        square.mul_(3 * K).add_(C).mul_(u)
        aten.sigmoid_backward.grad_input(square, share, grad_input=square)
        square.add_(share)
    return share.mul_(u), square


def _times_slope(act: nn.Module, g: Tensor, slope: Tensor) -> Tensor:
    if _by_erf(act):
        found: Tensor = aten.gelu_backward(g, slope)
        return found
    return g.mul_(slope)


def _by_erf(act: nn.Module) -> bool:
    # By name: to import Transformers takes seconds, which listings need not wait for.
    return type(act).__name__ == "GELUActivation"


def known(act: nn.Module) -> bool:
    """Return whether an activation is one that a `Tail` can take: GELU by erf, or by tanh."""
    function: Callable[..., Any] | None = getattr(act, "act", None)
    if _by_erf(act):
        return function is F.gelu
    by_tanh = getattr(function, "keywords", None) == {"approximate": "tanh"}
    return type(act).__name__ == "GELUTanh" and by_tanh
