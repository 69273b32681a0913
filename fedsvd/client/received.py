"""What a client refuses to train from: a state that is not finite, or absurdly large.

Padding is masked by adding a large negative number to attention scores, and rounding is relative to
what is computed: both hold only while numbers have the size that a model's numbers have. A server
that sends a state beyond it (made so, or diverged) could let an example's neighbours into its
gradient. The limits look at the state alone, so a refusal says nothing about data.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedsvd.adapters.adapted import NAME
from fedsvd.adapters.lora import factors_in, frozen_weight
from fedsvd.lowrank import AdapterState

# An honest update s B A has a fraction of its layer's weight; with the noise of epsilon 0.1 a few
# times it. With 1,000 times the weight of every layer, scores of attention stay below 10^15, where
# masks of -10^38 hold.
RELATIVE = 1e3
# Of the root mean square of a tensor's entries, or of that of its first values if that is above 1.
ENTRIES = 1e3


class RefusedState(Exception):
    """A client was sent a state that it does not train from."""


def refuse(layers: Mapping[str, nn.Module], initial: AdapterState, state: AdapterState) -> None:
    """Raise RefusedState for values that are not finite or beyond the limits; name the tensor.

    Of every layer s ||A|| ||B|| and the update s ||W|| of its frozen weight are at most `RELATIVE`
    times the norm of the weight as pretrained (Frobenius), and of every tensor the root mean square
    of the entries is at most `ENTRIES` times max(1, that of the first state).
    """
    first = initial.tensors()
    for name, value in state.select(("A", "B", "W", "extra")).items():
        size = rms(value)
        limit = ENTRIES * max(1.0, rms(first[name]) if name in first else 0.0)
        if not size <= limit:  # also where it is not a number
            raise RefusedState(f"{name}: entries of size {size:.3g}, limit {limit:.3g}")
    for layer, pair in state.factors.items():
        module: Any = layers.get(layer)
        if module is None or not factors_in(module):
            continue
        weight = float(frozen_weight(module).double().norm())
        scale, limit = abs(float(module.scaling[NAME])), RELATIVE * max(weight, 1e-6)
        sizes = {f"s ||{layer}.A|| ||{layer}.B||": norm(pair.A) * norm(pair.B)}
        if layer in state.base:
            sizes[f"s ||{layer}.W||"] = norm(state.base[layer])
        for what, size in sizes.items():
            if not scale * size <= limit:
                raise RefusedState(f"{what} is {scale * size:.3g}, limit {limit:.3g}")


def norm(value: Tensor) -> float:
    """Return the Frobenius norm, in float64: squares of float32 overflow."""
    return float(torch.linalg.vector_norm(value.detach().double()))


def rms(value: Tensor) -> float:
    """Return the root mean square of the entries."""
    return norm(value) / max(1, value.numel()) ** 0.5
