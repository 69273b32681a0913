"""What is done to noised gradients of A and B before a step: low-pass filters and a projection.

All of it looks at the noised gradient and at A and B alone: post-processing, no extra budget.
"""

import math

import torch
from torch import Tensor
from torch.nn import functional as F

BINOMIAL = (1, 4, 6, 4, 1)  # over 16


def binomial(x: Tensor, dim: int) -> Tensor:
    """Return a matrix convolved along `dim` with [1, 4, 6, 4, 1] / 16.

    LA-LoRA's filter (Liu et al., ICLR 2026, arXiv 2602.19926). The padding is symmetric: the ends
    are mirrored with the last entry repeated, as NumPy's "symmetric". `dim` has at least 2 entries.
    """
    rows = x if dim == 1 else x.mT
    front, back = rows[:, [1, 0]], rows[:, [-1, -2]]
    padded = torch.cat([front, rows, back], dim=1).unsqueeze(1)
    kernel = torch.tensor(BINOMIAL, dtype=x.dtype, device=x.device) / 16
    smoothed = F.conv1d(padded, kernel.view(1, 1, -1)).squeeze(1)
    return smoothed if dim == 1 else smoothed.mT.contiguous()


def smooth(x: Tensor, std: float, dim: int) -> Tensor:
    """Return a matrix convolved along `dim` with a Gaussian of `std` entries, cut at 3 std.

    The kernel sums to 1 and the ends are repeated, so that a constant stays what it is.
    """
    radius = max(1, math.ceil(3 * std))
    at = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (at / std) ** 2)
    rows = x if dim == 1 else x.mT
    padded = F.pad(rows.unsqueeze(1), (radius, radius), mode="replicate")
    smoothed = F.conv1d(padded, (kernel / kernel.sum()).view(1, 1, -1)).squeeze(1)
    return smoothed if dim == 1 else smoothed.mT.contiguous()


def projected(gradient: Tensor, other: Tensor, kind: str, scale: float) -> Tensor:
    """Return g_B (A A^T)^+ / s^2 for kind "B", or (B^T B)^+ g_A / s^2 for "A".

    `other` is the factor that stands still: A (r, d_in) or B (d_out, r); s is the layer's `scale`.
    With g_B = s G A^T the step of s B A is then the gradient G of the weight, projected on the rows
    of A: the least-squares solution (LA-LoRA, theorem 2). The paper has an inverse; where B or A is
    deficient, as B = 0 is, this is the pseudo-inverse. Computed in float64.
    """
    g, X = gradient.double(), other.double()
    gram = X @ X.mT if kind == "B" else X.mT @ X
    inverse = torch.linalg.pinv(gram, hermitian=True) / scale**2
    return (g @ inverse if kind == "B" else inverse @ g).to(gradient)
