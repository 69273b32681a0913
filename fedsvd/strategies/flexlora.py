"""FlexLoRA: average the products B_k A_k and keep the leading rank r of the mean."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

from fedsvd.lowrank import AdapterState, refactorise_pairs, weighted_sum
from fedsvd.lowrank.ranks import pad
from fedsvd.strategies.base import Strategy, Update, weighted_extra


@final
class FlexLora(Strategy):
    """B A is the best rank-r approximation of sum p_k B_k A_k; A has orthonormal rows, B = U S.

    FlexLoRA (Bai et al., NeurIPS 2024, arXiv 2402.11505). The mean is kept as stacked factors, whose
    SVD needs QR factors and a core of the sum of the clients' ranks only. A client of rank r_k takes
    the first r_k rows of A: the best approximation of its rank.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    any_rank: ClassVar[bool] = True

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the truncated mean product, and the mean of the head."""
        mean, weights, factors = weighted_extra(state, updates), [u.weight for u in updates], {}
        for layer, pair in state.factors.items():
            stacked = weighted_sum([u.state.factors[layer] for u in updates], weights)
            # Few small clients have fewer components than A has rows; the others get B = 0.
            stacked = pad(stacked, max(stacked.rank, pair.rank))
            best = refactorise_pairs({layer: stacked}, rank=pair.rank, dtype=pair.A.dtype)
            factors.update(best)
        return replace(mean, factors=factors)
