"""The tangent space of matrices of rank r at Z = B A: coordinates, steps in it, the way back.

With U (d_out, r) and V (d_in, r) orthonormal bases of the columns of B and the rows of A, a gradient
G (d_out, d_in) of Z has the projection

    P(G) = U U^T G + G V V^T - U U^T G V V^T = T V^T + U S,
    T = G V (d_out, r),    S = U^T G (I - V V^T) (r, d_in).

The two summands are orthogonal, so ||P(G)||_F^2 = ||T||_F^2 + ||S||_F^2: (S, T) are coordinates in
which the Frobenius norm is the plain one, and a standard normal of the space, which has dimension
r (d_out + d_in - r), is a standard normal T and one of S made orthogonal to V. U and V follow from
Z alone up to a rotation, so nothing here depends on which B and A give it. PRISM (Wang, Zhang,
ICML 2026, arXiv 2606.00944) has the same projection and noise in other coordinates.

Where B or A is deficient, as B = 0 is, there is no such space: U or V then have as many columns as
the rank (the others are 0), and P projects on what remains, at B = 0 on the matrices X V^T.
"""

from collections.abc import Mapping
from dataclasses import dataclass

import torch
from torch import Tensor

from fedsvd.lowrank.align import align, rotation
from fedsvd.lowrank.pair import LowRank
from fedsvd.lowrank.refactor import refactorise_pairs
from fedsvd.lowrank.stack import weighted_sum

# Of the largest singular value: what is below counts as 0. PRISM's code cuts Gram matrices at 1e-6.
CUT = 1e-3


@dataclass(frozen=True)
class Frame:
    """Bases at a point, and what turns gradients of the factors into coordinates; all float64.

    U (d_out, r), V (d_in, r); T = g_B `right`, U^T G = `left` g_A with `right` and `left` (r, r).
    """

    U: Tensor
    V: Tensor
    right: Tensor
    left: Tensor


def frame(pair: LowRank) -> Frame:
    """Return the frame at B A.

    A^T = V a P^T and B = U b Q^T (thin SVDs) give, for g_B = G A^T and g_A = B^T G,
    G V = g_B P a^-1 and U^T G = b^-1 Q^T g_A. Singular values up to CUT times the largest are left
    out with their vectors.
    """
    V, a, P = _thin(pair.A.double().mT)
    U, b, Q = _thin(pair.B.double())
    return Frame(U, V, P * a, (Q * b).mT)


def _thin(X: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return bases (d, r) and (r, r) and inverse singular values (r,) of X (d, r), 0 if left out."""
    left, s, right = torch.linalg.svd(X, full_matrices=False)
    kept = s > CUT * s[0] if len(s) else s > 0
    inverse = torch.where(kept, 1 / s.where(kept, torch.ones_like(s)), 0.0)
    d, r = X.shape
    U, P, full = X.new_zeros(d, r), X.new_zeros(r, r), X.new_zeros(r)
    k = len(s)
    U[:, :k], P[:, :k], full[:k] = left * kept, right.mT * kept, inverse
    return U, full, P


def coordinates(at: Frame, g_A: Tensor, g_B: Tensor) -> tuple[Tensor, Tensor]:
    """Return S (..., r, d_in) and T (..., d_out, r) of gradients of A and B, in their dtype.

    The gradients are of one function of B A, so that they are B^T G and G A^T. Linear: it depends on
    the frame alone.
    """
    S = across(at, at.left.to(g_A) @ g_A)
    return S, g_B @ at.right.to(g_B)


def across(at: Frame, S: Tensor) -> Tensor:
    """Return S (I - V V^T), the part that is not in T already."""
    V = at.V.to(S)
    return S - (S @ V) @ V.mT


def lift(pair: LowRank, at: Frame, S: Tensor, T: Tensor) -> tuple[Tensor, Tensor]:
    """Return the least dA, dB with dB A + B dA = T V^T + U S (S orthogonal to V); float64.

    Of all (dA - O A, dB + B O) it is the one with B^T dB = dA A^T, which has the smallest
    ||dA||^2 + ||dB||^2: (B^T B) O + O (A A^T) = -B^T dB for dB = T V^T A^+, dA = B^+ U S.
    """
    A, B = pair.A.double(), pair.B.double()
    dA, dB = at.left.mT @ S.double(), T.double() @ at.right.mT
    m, X = torch.linalg.eigh(B.mT @ B)
    n, Y = torch.linalg.eigh(A @ A.mT)
    sums = m.clamp(min=0)[:, None] + n.clamp(min=0)[None, :]
    kept = sums > CUT**2 * sums.max()
    right = X.mT @ (-B.mT @ dB) @ Y
    O = X @ torch.where(kept, right / sums.where(kept, torch.ones_like(sums)), 0.0) @ Y.mT  # noqa: E741
    return dA - O @ A, dB + B @ O


def retract(moved: Mapping[str, LowRank], reference: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Return the best approximations of the products of `moved`, of the reference's ranks.

    The factors are balanced, A A^T = B^T B, and of all that are they are the nearest to the
    reference's (orthogonal Procrustes), in its dtype. `moved` may have any ranks: it is stacked.
    """
    best: dict[str, LowRank] = {}
    for rank in {reference[name].rank: None for name in moved}:  # in the order of the layers
        alike = {name: pair for name, pair in moved.items() if reference[name].rank == rank}
        best |= refactorise_pairs(alike, rank, "balanced", torch.float64)
    near = align(best, {name: reference[name] for name in best}, rotation)
    dtypes = {name: reference[name].A.dtype for name in near}
    return {n: LowRank(near[n].A.to(dtypes[n]), near[n].B.to(dtypes[n])) for n in moved}


def stepped(pair: LowRank, dA: Tensor, dB: Tensor, keep: float = 1.0) -> LowRank:
    """Return `keep` B A + dB A + B dA as stacked factors, float64; dA (r, d_in), dB (d_out, r)."""
    return weighted_sum([pair, LowRank(pair.A, dB), LowRank(dA, pair.B)], [keep, 1.0, 1.0])


def along(pair: LowRank, at: Frame, S: Tensor, T: Tensor, keep: float = 1.0) -> LowRank:
    """Return `keep` B A + T V^T + U S as stacked factors, float64."""
    return weighted_sum([pair, LowRank(at.V.mT, T), LowRank(S, at.U)], [keep, 1.0, 1.0])
