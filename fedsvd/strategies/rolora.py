"""RoLoRA: rounds of B alternate with rounds of A."""

from collections.abc import Sequence
from typing import ClassVar, final

from fedsvd.lowrank import AdapterState
from fedsvd.strategies.base import Strategy, Update, weighted_mean


@final
class RoLora(Strategy):
    """Train and average B in odd rounds, A in even ones; the other factor is frozen and shared.

    RoLoRA (Chen et al., NeurIPS 2025, arXiv 2502.01755). Exact in every round, as one factor is equal
    everywhere. Only what trains travels up.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    averages: ClassVar[bool] = True
    mean_only: ClassVar[bool] = True
    exact = True

    def trains_in(self, round: int) -> tuple[str, ...]:
        """Return ("B",) for odd rounds, ("A",) for even ones."""
        return ("B",) if round % 2 else ("A",)

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted mean of what trained."""
        return weighted_mean(state, updates)
