"""FLoRIST: the mean product, cut at a share of its energy, goes into the frozen weight."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch

from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState, refactorise_pairs, weighted_sum
from fedsvd.lowrank.subspace import leading
from fedsvd.strategies.base import Strategy, Update, weighted_extra
from fedsvd.strategies.flora import fresh


@final
class Florist(Strategy):
    """W += U_p S_p V_p^T of sum p_k B_k A_k = U S V^T; then a fresh Kaiming-uniform A and B = 0.

    FLoRIST (Ramesh, Dass, MLSys 2026, arXiv 2506.09199, section 3 and algorithm 1). p is, for every
    layer and round, the smallest number with sum_{i<=p} S_i^2 >= threshold * sum S_i^2. The stacked
    factors' QR and the SVD of a core of the sum of the clients' ranks give U, S and V; the paper's
    two SVDs and that of the core between them give the same. Clients merge what they are sent and
    start again: algorithm 1. They may have ranks of their own. Exact with `threshold` 1: FLoRA.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    any_rank: ClassVar[bool] = True
    broadcasts: ClassVar[tuple[str, ...]] = ("A", "B", "W")

    def __init__(self, threshold: float = 0.9, seed: int = 0) -> None:
        if not 0 < threshold <= 1:
            raise wrong("strategy.threshold", threshold, "in (0, 1]")
        self.threshold, self.seed = threshold, seed
        self.exact = self.idempotent = self.fixed_point = threshold == 1

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the state with the cut product in W and new factors; the head is the mean."""
        factors, base, weights = {}, dict(state.base), [u.weight for u in updates]
        for layer, pair in state.factors.items():
            stacked = weighted_sum([u.state.factors[layer] for u in updates], weights)
            most = min(stacked.rank, stacked.A.shape[1])
            mean = refactorise_pairs({layer: stacked}, rank=most)[layer]
            p = leading(mean.B.norm(dim=0), self.threshold)
            W = base.get(layer, torch.zeros_like(pair.product())).double()
            base[layer] = (W + mean.B[:, :p] @ mean.A[:p]).to(pair.B.dtype)
            factors[layer] = fresh(pair, self.seed, state.round, layer)
        return replace(weighted_extra(state, updates), factors=factors, base=base)
