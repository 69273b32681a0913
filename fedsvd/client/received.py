"""What a client refuses to train from: a state that is not finite, or absurdly large.

Padding is masked by adding a large negative number to attention scores, and rounding is relative to
what is computed: both hold only while numbers have the size that a model's numbers have. A server
that sends a state beyond it (made so, or diverged), or rates, pulls and decays that lead there in a
step, could let an example's neighbours into its gradient. The limits look at the state alone, which
is what was sent and noised steps from there, so a refusal says nothing more about data.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn

from fedsvd.adapters.adapted import NAME
from fedsvd.adapters.lora import factors_in, frozen_weight
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.pair import kind_of

# An honest update s B A has a fraction of its layer's weight; with the noise of epsilon 0.1 a few
# times it. With 1,000 times the weight of every layer, scores of attention stay below 10^15, where
# masks of -10^38 hold.
RELATIVE = 1e3
# Of the root mean square of a tensor's entries, or of that of its first values if that is above 1.
ENTRIES = 1e3


class RefusedState(Exception):
    """A client was sent a state that it does not train from, or was led to one."""


@dataclass(frozen=True)
class Limits:
    """The most that a client's state may be, and what of it no step changes.

    `entries`: of a tensor's root mean square, by name. `layers`: by layer its scale |s| and the most
    of s ||A|| ||B|| and of s ||W||. `sizes`: the norms of the factors that were received.
    """

    entries: Mapping[str, float]
    layers: Mapping[str, tuple[float, float]]
    sizes: Mapping[str, float]

    def hold(self, named: Mapping[str, Tensor]) -> None:
        """Raise RefusedState, with the tensor's name, where what trains is beyond the limits.

        `named` are the tensors as they are now; all others are as they were received. It costs a
        norm a tensor and one answer of the device. Squares that overflow are beyond every limit.
        """
        tensors = [p.detach() for p in named.values()]
        found = torch.stack(torch._foreach_norm(tensors)).tolist() if tensors else []
        norms = {**self.sizes, **dict(zip(named, found, strict=True))}
        for name, value in named.items():
            size = norms[name] / max(1, value.numel()) ** 0.5
            _at_most(f"{name}: entries of size", size, self.entries[name])
        for layer, (scale, limit) in self.layers.items():
            A, B = f"{layer}.A", f"{layer}.B"
            _at_most(f"s ||{A}|| ||{B}|| is", scale * norms[A] * norms[B], limit)


def refuse(layers: Mapping[str, nn.Module], initial: AdapterState, state: AdapterState) -> Limits:
    """Raise RefusedState for values that are not finite or beyond the limits; name the tensor.

    Of every layer s ||A|| ||B|| and the update s ||W|| of its frozen weight are at most `RELATIVE`
    times the norm of the weight as pretrained (Frobenius), and of every tensor the root mean square
    of the entries is at most `ENTRIES` times max(1, that of the first state). Return the limits, to
    hold what trains to them before every further step.
    """
    first, entries, bounds, sizes = initial.tensors(), {}, {}, {}
    for name, value in state.select(("A", "B", "W", "extra")).items():
        entries[name] = ENTRIES * max(1.0, rms(first[name]) if name in first else 0.0)
        _at_most(f"{name}: entries of size", rms(value), entries[name])
        if kind_of(name) in ("A", "B"):
            sizes[name] = norm(value)
    for layer, pair in state.factors.items():
        module: Any = layers.get(layer)
        if module is None or not factors_in(module):
            continue
        weight = float(frozen_weight(module).double().norm())
        scale, limit = abs(float(module.scaling[NAME])), RELATIVE * max(weight, 1e-6)
        size = scale * norm(pair.A) * norm(pair.B)
        _at_most(f"s ||{layer}.A|| ||{layer}.B|| is", size, limit)
        if layer in state.base:
            _at_most(f"s ||{layer}.W|| is", scale * norm(state.base[layer]), limit)
        bounds[layer] = scale, limit
    return Limits(entries, bounds, sizes)


def _at_most(what: str, size: float, limit: float) -> None:
    if not size <= limit:  # also where it is not a number
        raise RefusedState(f"{what} {size:.3g}, limit {limit:.3g}")


def norm(value: Tensor) -> float:
    """Return the Frobenius norm, in float64: squares of float32 overflow."""
    return float(torch.linalg.vector_norm(value.detach().double()))


def rms(value: Tensor) -> float:
    """Return the root mean square of the entries."""
    return norm(value) / max(1, value.numel()) ** 0.5
