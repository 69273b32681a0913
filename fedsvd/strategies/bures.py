"""Bures-Wasserstein mean of the clients' B."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.lowrank.barycentre import barycentre
from fedsvd.strategies.base import Strategy, Update, weighted_extra
from fedsvd.strategies.checks import check_tolerance


@final
class Bures(Strategy):
    """B is a factor of the Bures-Wasserstein mean of the S_k = B_k B_k^T: an adaptation of ours.

    The mean minimises sum p_k W(S, S_k)^2, W the 2-Wasserstein distance of centred Gaussians, by the
    iteration of Alvarez-Esteban et al. (2016) on factors: see `fedsvd.lowrank.barycentre`. Of all
    factors X O of it, B is the one nearest to the mean of the B_k. Where the clients' columns differ
    by rotations, the mean of the B_k loses length and this one does not. A is fixed and shared; S_k
    does not know which row of A a column of B_k belongs to, so W + B A is not the mean of the
    clients', and only the last rotation ties B to A.
    """

    broadcasts: ClassVar[tuple[str, ...]] = ("B",)
    needs_equal_A: ClassVar[bool] = True

    def __init__(self, tolerance: float = 1e-9) -> None:
        check_tolerance(tolerance)
        self.tolerance = tolerance

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the mean of every layer's B, A as it was, and the mean of the head."""
        factors, weights = {}, [u.weight for u in updates]
        for layer, pair in state.factors.items():
            X = barycentre([u.state.factors[layer].B for u in updates], weights, self.tolerance)
            factors[layer] = LowRank(pair.A, X.to(pair.B))
        return replace(weighted_extra(state, updates), factors=factors)
