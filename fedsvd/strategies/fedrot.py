"""FedRot-LoRA: clients turn their factors to the last global A or B, in turn, before averaging."""

from collections.abc import Callable, Sequence
from functools import partial
from typing import ClassVar, final

from torch import Tensor

from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.align import rotation, soft_rotation
from fedsvd.strategies.align import aligned_mean
from fedsvd.strategies.base import Strategy, Update, weighted_mean


@final
class FedRot(Strategy):
    """Turn (A_k, B_k) into (R_k^T A_k, B_k R_k), then average each factor; in round 1 turn nothing.

    FedRot-LoRA (Zhang et al., ICML 2026, arXiv 2602.23638; checked against the released code). R_k is
    the orthogonal Procrustes solution for one factor: with the factor `first`, R_k = U V^T of A_k A^T
    = U S V^T in rounds 2, 4, ... and of B_k^T B in rounds 3, 5, ..., A and B those that the round
    began with. A turn keeps B_k A_k; the server turns, with the same result as if clients had. Not
    exact.

    `strength` None takes that R*, reflections too, as the released configurations do; a number
    lambda in (0, 1] the soft form, the projection of (1 - lambda) I + lambda R* with det R* = 1.
    `align` with method rotation and one iteration compares A and B at once instead: the larger factor
    decides there.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    averages: ClassVar[bool] = True  # of factors turned to those that the round began with
    any_scale = True

    def __init__(self, strength: float | None = None, first: str = "A") -> None:
        if strength is not None and not 0 < strength <= 1:
            raise wrong("strategy.strength", strength, "null or in (0, 1]")
        if first not in ("A", "B"):
            raise one_of("strategy.first", first, ("A", "B"))
        self.strength, self.first = strength, first
        # A client in another basis is turned back, but not in round 1, and not softly.
        self.any_basis = 2 if strength is None else None

    def aligned_by(self, round: int) -> str:
        """Return the factor, "A" or "B", that a round (from 2) turns by."""
        return self.first if round % 2 == 0 else "AB".replace(self.first, "")

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted mean of the turned factors, and of the head."""
        if state.round <= 1:
            return weighted_mean(state, updates)
        find: Callable[[Tensor], Tensor] = rotation
        if self.strength is not None:
            find = partial(soft_rotation, strength=self.strength)
        return aligned_mean(state, updates, state, find, by=self.aligned_by(state.round))
