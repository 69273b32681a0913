"""FedRot-LoRA: clients rotate their factors to the last global ones before averaging."""

from collections.abc import Sequence
from typing import ClassVar, final

from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.align import rotation
from fedsvd.strategies.align import aligned_mean
from fedsvd.strategies.base import Strategy, Update


@final
class FedRot(Strategy):
    """Turn (A_k, B_k) into (R_k^T A_k, B_k R_k), then average each factor.

    FedRot-LoRA (ICML 2026). R_k is the orthogonal Procrustes solution that brings client k's factors
    closest to those that the round began with: R_k = U V^T of B_k^T B + A_k A^T = U S V^T. A turn
    keeps B_k A_k, so the result is as if clients had turned before sending. Not exact.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    averages: ClassVar[bool] = True  # of factors turned to those that the round began with

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted mean of the turned factors."""
        return aligned_mean(state, updates, state, rotation)
