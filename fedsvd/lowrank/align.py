"""Alignment of the rank components of two pairs, which are defined only up to an r x r map."""

from collections import defaultdict
from collections.abc import Callable, Mapping

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fedsvd.lowrank.pair import LowRank


def align(
    factors: Mapping[str, LowRank],
    reference: Mapping[str, LowRank],
    find: Callable[[Tensor], Tensor],
) -> dict[str, LowRank]:
    """Return every layer's pair as (R^T A, B R), the same product, near the reference's factors.

    `find` maps M = B^T B_ref + A A_ref^T, (n, r, r) float64, where M_ij compares component i with j,
    to orthogonal matrices R of the same shape. Layers of one shape are taken together.
    """
    groups: dict[tuple, list[str]] = defaultdict(list)
    for layer, pair in factors.items():
        groups[(pair.A.shape, pair.B.shape, pair.A.dtype)].append(layer)
    done: dict[str, LowRank] = {}
    for (_, _, dtype), layers in groups.items():
        A, B = _stacked(factors, layers)
        A_ref, B_ref = _stacked(reference, layers)
        R = find(B.mT @ B_ref + A @ A_ref.mT)
        new_A, new_B = (R.mT @ A).to(dtype), (B @ R).to(dtype)
        done.update({layer: LowRank(new_A[i], new_B[i]) for i, layer in enumerate(layers)})
    return {layer: done[layer] for layer in factors}


def rotation(M: Tensor) -> Tensor:
    """Return the orthogonal R (..., r, r) that maximise tr(R^T M): R = U V^T of M = U S V^T.

    The orthogonal Procrustes problem (Schoenemann, Psychometrika 1966). With M as in `align` it
    minimises ||B R - B_ref||^2 + ||R^T A - A_ref||^2.
    """
    U, _, Vh = torch.linalg.svd(M)
    return U @ Vh


def permutation(M: Tensor) -> Tensor:
    """Return the permutation matrices P (n, r, r) that maximise tr(P^T M), by linear assignment."""
    P = torch.zeros_like(M)
    for p, m in zip(P, M.cpu().numpy(), strict=True):
        rows, columns = linear_sum_assignment(m, maximize=True)
        p[torch.as_tensor(rows), torch.as_tensor(columns)] = 1.0
    return P


def _stacked(factors: Mapping[str, LowRank], layers: list[str]) -> tuple[Tensor, Tensor]:
    """Return the layers' A (n, r, d_in) and B (n, d_out, r) in float64."""
    A = torch.stack([factors[layer].A for layer in layers]).double()
    return A, torch.stack([factors[layer].B for layer in layers]).double()
