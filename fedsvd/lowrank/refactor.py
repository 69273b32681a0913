"""Exact refactorisation of B A into orthonormal rows and scaled columns."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedsvd.lowrank.pair import AdapterState, LowRank


def refactorise(state: AdapterState) -> AdapterState:
    """Return `state` with B A = U S V^T rewritten as A = V^T, B = U S in every layer.

    FedSVD's server step (Lee et al., NeurIPS 2025, arXiv 2505.12805). See `refactorise_pairs`.
    """
    return replace(state, factors=refactorise_pairs(state.factors))


def refactorise_pairs(factors: Mapping[str, LowRank]) -> dict[str, LowRank]:
    """Return the same products with A orthonormal in its rows and B = U S, S descending.

    The d_out x d_in product is never formed: with B = Qb Rb and A^T = Qa Ra, the SVD of the r x r
    core Rb Ra^T = U S V^T gives A = V^T Qa^T and B = Qb U S, in O((d_out + d_in) r^2). Layers of one
    shape are batched into one call, on the device the factors are on. The work is done in float64
    and returned in the factors' dtype. The sign is fixed: in every row of A the entry of largest
    magnitude is positive. Any A and B of full or deficient rank will do; the rank r stays.

    Raises ValueError if r exceeds d_in (r orthonormal rows do not exist then).
    """
    groups: dict[tuple, list[str]] = defaultdict(list)
    for layer, pair in factors.items():
        if pair.rank > pair.A.shape[1]:
            raise ValueError(f"{layer}: rank {pair.rank} exceeds d_in = {pair.A.shape[1]}")
        groups[(*pair.A.shape, pair.B.shape[0], pair.A.dtype, pair.A.device)].append(layer)

    done: dict[str, LowRank] = {}
    for layers in groups.values():
        A = torch.stack([factors[layer].A for layer in layers])
        B = torch.stack([factors[layer].B for layer in layers])
        new_A, new_B = _refactorise_batch(A, B)
        for i, layer in enumerate(layers):
            done[layer] = LowRank(new_A[i], new_B[i])
    return {layer: done[layer] for layer in factors}


def _refactorise_batch(A: Tensor, B: Tensor) -> tuple[Tensor, Tensor]:
    """Refactorise (n, r, d_in) and (n, d_out, r) factors; see `refactorise_pairs`."""
    rank, dtype = A.shape[1], A.dtype
    Qb, Rb = torch.linalg.qr(B.double())
    Qa, Ra = torch.linalg.qr(A.double().mT)
    U, S, Vh = torch.linalg.svd(Rb @ Ra.mT)
    # U is square of size min(d_out, r); where d_out < r the remaining columns of B are zero.
    kept = S.shape[-1]
    new_B = torch.zeros(*B.shape[:2], rank, dtype=torch.float64, device=B.device)
    new_B[..., :kept] = Qb @ (U[..., :kept] * S.unsqueeze(-2))
    new_A = Vh @ Qa.mT
    peak = new_A.gather(-1, new_A.abs().argmax(-1, keepdim=True))
    sign = torch.where(peak < 0, -1.0, 1.0)
    return (new_A * sign).to(dtype), (new_B * sign.mT).to(dtype)
