"""Alignment of the rank components of two pairs, which are defined only up to an r x r map."""

from collections import defaultdict
from collections.abc import Callable, Mapping, Sequence

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fedsvd.lowrank.pair import LowRank


def align(
    factors: Mapping[str, LowRank],
    reference: Mapping[str, LowRank],
    find: Callable[[Tensor], Tensor],
    by: Sequence[str] = ("A", "B"),
) -> dict[str, LowRank]:
    """Return every layer's pair as (R^T A, B R), the same product, near the reference's factors.

    `find` maps M, (n, r, r) float64, where M_ij compares component i with j, to orthogonal matrices R
    of the same shape. M is A A_ref^T, B^T B_ref or their sum, as `by` names one factor or both. In
    the sum the larger factor decides: where A is c times and B 1/c times as large, R is another.
    Layers of one shape are taken together.
    """
    groups: dict[tuple, list[str]] = defaultdict(list)
    for layer, pair in factors.items():
        groups[(pair.A.shape, pair.B.shape, pair.A.dtype)].append(layer)
    done: dict[str, LowRank] = {}
    for (_, _, dtype), layers in groups.items():
        A, B = _stacked(factors, layers)
        A_ref, B_ref = _stacked(reference, layers)
        compared = {"A": A @ A_ref.mT, "B": B.mT @ B_ref}
        R = find(torch.stack([compared[factor] for factor in by]).sum(0))
        new_A, new_B = (R.mT @ A).to(dtype), (B @ R).to(dtype)
        done.update({layer: LowRank(new_A[i], new_B[i]) for i, layer in enumerate(layers)})
    return {layer: done[layer] for layer in factors}


def rotation(M: Tensor) -> Tensor:
    """Return the orthogonal R (..., r, r) that maximise tr(R^T M): R = U V^T of M = U S V^T.

    The orthogonal Procrustes problem (Schoenemann, Psychometrika 1966). With M as in `align` it
    minimises ||R^T A - A_ref||^2, ||B R - B_ref||^2 or their sum. Components that M says nothing of
    stay as they are; reflections count too.
    """
    U, _, Vh = torch.linalg.svd(_settled(M))
    return U @ Vh


def soft_rotation(M: Tensor, strength: float) -> Tensor:
    """Return the rotations (..., r, r), det 1, that go `strength` (0 to 1) of the way from I to R*.

    R* maximises tr(R^T M) among rotations: U diag(1, ..., 1, det(U V^T)) V^T of M = U S V^T (Kabsch,
    Acta Crystallographica 1976). The result is the orthogonal matrix nearest to (1 - strength) I +
    strength R* (FedRot-LoRA, Zhang et al., ICML 2026, arXiv 2602.23638). 0 is I, 1 is R*.
    """
    U, _, Vh = torch.linalg.svd(_settled(M))
    sign = torch.linalg.det(U @ Vh).sign()
    U = torch.cat([U[..., :-1], U[..., -1:] * sign[..., None, None]], dim=-1)
    identity = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    return rotation((1 - strength) * identity + strength * (U @ Vh))


def _settled(M: Tensor) -> Tensor:
    """Return M with a trace of I, which decides what M leaves open: no turn."""
    size = torch.linalg.matrix_norm(M, keepdim=True)
    identity = torch.eye(M.shape[-1], dtype=M.dtype, device=M.device)
    return M + torch.where(size > 0, 1e-12 * size, 1.0) * identity


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
