"""Exact refactorisation of B A into orthonormal rows and scaled columns."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedsvd.lowrank.pair import AdapterState, LowRank

SPLITS = ("svd", "balanced")


def refactorise(state: AdapterState, split: str = "svd") -> AdapterState:
    """Return `state` with B A = U S V^T rewritten as A = V^T, B = U S in every layer.

    FedSVD's server step (Lee et al., NeurIPS 2025, arXiv 2505.12805). See `refactorise_pairs`.
    """
    return replace(state, factors=refactorise_pairs(state.factors, split=split))


def refactorise_pairs(
    factors: Mapping[str, LowRank],
    rank: int | None = None,
    split: str = "svd",
    dtype: torch.dtype | None = None,
) -> dict[str, LowRank]:
    """Return the same products with A orthonormal in its rows and B = U S, S descending.

    The d_out x d_in product is never formed: with B = Qb Rb and A^T = Qa Ra, the SVD of the r x r
    core Rb Ra^T = U S V^T gives A = V^T Qa^T and B = Qb U S, in O((d_out + d_in) r^2). Layers of one
    shape are batched into one call, on the device the factors are on. The work is done in float64
    and returned in the factors' dtype, or in `dtype`. The sign is fixed: in every row of A the entry
    of largest magnitude is positive. Any A and B of full or deficient rank will do.

    `rank` keeps that many leading singular triplets, the best approximation of that rank; by default
    the rank r stays. `split` "balanced" puts S^1/2 on both sides: A = S^1/2 V^T, B = U S^1/2.

    Raises ValueError if the rank exceeds d_in (so many orthonormal rows do not exist then) or the
    pair's own.
    """
    if split not in SPLITS:
        raise ValueError(f"split must be one of {', '.join(SPLITS)}; got {split!r}")
    groups: dict[tuple, list[str]] = defaultdict(list)
    for layer, pair in factors.items():
        wanted = pair.rank if rank is None else rank
        if wanted > pair.A.shape[1]:
            raise ValueError(f"{layer}: rank {wanted} exceeds d_in = {pair.A.shape[1]}")
        if wanted > pair.rank:
            raise ValueError(f"{layer}: rank {wanted} exceeds the pair's, {pair.rank}")
        groups[(*pair.A.shape, pair.B.shape[0], pair.A.dtype, pair.A.device)].append(layer)

    done: dict[str, LowRank] = {}
    for layers in groups.values():
        A = torch.stack([factors[layer].A for layer in layers])
        B = torch.stack([factors[layer].B for layer in layers])
        new_A, new_B = _refactorise_batch(A, B, A.shape[1] if rank is None else rank, split)
        for i, layer in enumerate(layers):
            done[layer] = LowRank(new_A[i].to(dtype or A.dtype), new_B[i].to(dtype or A.dtype))
    return {layer: done[layer] for layer in factors}


def _refactorise_batch(A: Tensor, B: Tensor, rank: int, split: str) -> tuple[Tensor, Tensor]:
    """Refactorise (n, r, d_in) and (n, d_out, r) factors, in float64; see `refactorise_pairs`."""
    Qb, Rb = torch.linalg.qr(B.double())
    Qa, Ra = torch.linalg.qr(A.double().mT)
    U, S, Vh = torch.linalg.svd(Rb @ Ra.mT)
    # U is square of size min(d_out, r); where d_out < r the remaining columns of B are zero.
    kept = min(S.shape[-1], rank)
    new_B = torch.zeros(*B.shape[:2], rank, dtype=torch.float64, device=B.device)
    new_B[..., :kept] = Qb @ (U[..., :kept] * S[..., None, :kept])
    new_A = (Vh @ Qa.mT)[..., :rank, :]
    peak = new_A.gather(-1, new_A.abs().argmax(-1, keepdim=True))
    sign = torch.where(peak < 0, -1.0, 1.0)
    new_A, new_B = new_A * sign, new_B * sign.mT
    if split == "balanced":
        root = torch.zeros(*new_A.shape[:2], 1, dtype=torch.float64, device=A.device)
        root[..., :kept, 0] = S[..., :kept].sqrt()
        # Where S is 0 both sides are; dividing B by S^1/2 there would give 0 / 0.
        new_B = torch.where(root.mT > 0, new_B / root.mT, 0.0)
        new_A = new_A * root
    return new_A, new_B
