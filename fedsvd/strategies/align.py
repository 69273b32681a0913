"""Alignment of the clients' rank components to their common mean before averaging."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import Tensor

from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.lowrank.align import align, permutation, rotation
from fedsvd.strategies.base import Strategy, Update, weighted_extra

MAPS: dict[str, Callable[[Tensor], Tensor]] = {"permutation": permutation, "rotation": rotation}


@final
class Align(Strategy):
    """Match every client's components to the mean of all, then average each factor.

    Components of two clients agree only up to an invertible r x r map. `method` "permutation"
    matches them one to one by linear assignment (weight matching as in Ainsworth et al., ICLR 2023,
    arXiv 2209.04836), "rotation" by orthogonal Procrustes. The first reference is the state that
    the round began with, each next one the mean of the clients aligned to the one before
    (generalised Procrustes analysis), `iterations` times. A and B are compared together, so that
    the larger of the two decides. Products B_k A_k are kept; their mean is not.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    averages: ClassVar[bool] = True  # of factors turned to those that the round began with

    def __init__(self, method: str = "permutation", iterations: int = 3) -> None:
        if method not in MAPS:
            raise one_of("strategy.method", method, MAPS)
        if iterations < 1:
            raise wrong("strategy.iterations", iterations, "a whole number of at least 1")
        self.method, self.iterations = method, iterations
        self.any_basis = 1 if method == "rotation" else None

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted mean of the aligned factors."""
        reference = state
        for _ in range(self.iterations):
            reference = aligned_mean(state, updates, reference, MAPS[self.method])
        return reference


def aligned_mean(
    state: AdapterState,
    updates: Sequence[Update],
    reference: AdapterState,
    find: Callable[[Tensor], Tensor],
    by: Sequence[str] = ("A", "B"),
) -> AdapterState:
    """Return `state` with the weighted mean of the factors turned to the reference's by `find`.

    `by` names the factors that are compared; see `fedsvd.lowrank.align.align`. One client is turned
    at a time, so that no second copy of all updates is held.
    """
    sums = {n: (torch.zeros_like(p.A).double(), torch.zeros_like(p.B).double())
            for n, p in state.factors.items()}  # fmt: skip
    for u in updates:
        for layer, pair in align(u.state.factors, reference.factors, find, by).items():
            A, B = sums[layer]
            A.add_(pair.A, alpha=u.weight)
            B.add_(pair.B, alpha=u.weight)
    factors = {
        layer: LowRank(A.to(state.factors[layer].A), B.to(state.factors[layer].B))
        for layer, (A, B) in sums.items()
    }
    return replace(weighted_extra(state, updates), factors=factors)
