"""Whether per-example gradients are those of each example alone, on the model at hand.

Hooks take the first axis for the example, a layer for one that is used once, and padding for inert.
Nothing in a model promises that, so it is measured: `farthest` compares what hooks give for padded
batches with plain autograd on each example, alone and unpadded.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

# Float32 rounds in the 8th digit; through a network the same gradient at another padding differs by
# 1e-7 to 1e-5 (`python -m benchmarks.gradients` prints it by architecture). What is wrong with hooks
# or padding differs by 1e-3 and more. A false alarm costs time, never privacy.
TOLERANCE = 1e-4
CLEAR = 0.25  # of what is tolerated: what is closer than that is not measured again in a process
# What is small beside an example's whole gradient is measured against this share of it: there a
# tensor's own rounding is large beside it and matters to no clip.
SHARE = 1e-2


@dataclass(frozen=True)
class Difference:
    """Where two sets of gradients are farthest apart, relative to the example's; or why none are."""

    name: str
    size: float
    why: str = ""

    @property
    def told(self) -> str:
        """A phrase for a message."""
        return self.why or f"{self.name} is off by {100 * self.size:.2g} %"


def farthest(found: Mapping[str, Tensor], expected: Mapping[str, Tensor]) -> Difference:
    """Return the greatest ||f - e|| / (||e|| + 0.01 ||all e||) over examples and tensors.

    Both hold (n, *shape) for names; `all e` is an example's whole gradient. What is not finite in
    either is infinitely far.
    """
    sizes = {n: _norms(e) for n, e in expected.items()}
    whole = torch.stack(list(sizes.values())).norm(dim=0)
    worst = Difference("", 0.0)
    for name, e in expected.items():
        f = found[name]
        if f.shape != e.shape:
            return Difference(name, float("inf"), f"{name} has gradients of shape {tuple(f.shape)}")
        scale = sizes[name] + SHARE * whole
        far = _norms(f - e) / scale.clamp(min=torch.finfo(scale.dtype).tiny)
        size = float(far.nan_to_num(nan=float("inf")).max())
        if size > worst.size:
            worst = Difference(name, size)
    return worst


def apart(found: Tensor, expected: Tensor) -> float:
    """Return the greatest ||f - e|| / ||e|| of rows (n, d); what is not finite is infinitely far."""
    sizes = _norms(expected)
    far = _norms(found - expected) / sizes.clamp(min=torch.finfo(sizes.dtype).tiny)
    return float(far.nan_to_num(nan=float("inf")).max())


def _norms(rows: Tensor) -> Tensor:
    return rows.double().flatten(start_dim=1).norm(dim=1)
