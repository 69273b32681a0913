"""Alignment of the clients' rank components to their common mean before averaging."""

from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import ClassVar, final

from torch import Tensor

from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.align import likeness, permutation, rotation, turn
from fedsvd.strategies.base import Strategy, Update, weighted_mean

MAPS: dict[str, Callable[[Tensor], Tensor]] = {"permutation": permutation, "rotation": rotation}


@final
class Align(Strategy):
    """Match every client's components to the mean of all, then average each factor.

    Components of two clients agree only up to an invertible r x r map. `method` "permutation" matches
    them one to one by linear assignment (weight matching as in Ainsworth et al., ICLR 2023, arXiv
    2209.04836), "rotation" by orthogonal Procrustes. The first reference is the state that the round
    began with, each next one the mean of the clients aligned to the one before (generalised
    Procrustes analysis), `iterations` times. Products B_k A_k are kept; their mean is not.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")

    def __init__(self, method: str = "permutation", iterations: int = 3) -> None:
        if method not in MAPS:
            raise one_of("strategy.method", method, MAPS)
        if iterations < 1:
            raise wrong("strategy.iterations", iterations, "a whole number of at least 1")
        self.method, self.iterations = method, iterations

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted mean of the aligned factors."""
        reference = state
        for _ in range(self.iterations):
            reference = weighted_mean(state, aligned(updates, reference, MAPS[self.method]))
        return reference


def aligned(
    updates: Sequence[Update], reference: AdapterState, find: Callable[[Tensor], Tensor]
) -> list[Update]:
    """Return the updates with every layer's factors turned to the reference's by `find`.

    `find` maps the (r, r) likeness of a client's components with the reference's to an orthogonal
    matrix.
    """
    out = []
    for u in updates:
        factors = {
            layer: turn(pair, find(likeness(pair, reference.factors[layer])))
            for layer, pair in u.state.factors.items()
        }
        out.append(replace(u, state=replace(u.state, factors=factors)))
    return out
