"""FFA-LoRA: A is frozen at its initial value everywhere."""

from collections.abc import Sequence
from typing import ClassVar, final

from fedsvd.lowrank import AdapterState
from fedsvd.strategies.base import Strategy, Update, weighted_mean


@final
class FFA(Strategy):
    """Keep A fixed and equal everywhere; train and average B (Sun et al., ICLR 2024, 2403.12313).

    Exact: (sum p_k B_k) A = sum p_k B_k A. Clients derive A from the run's seed, so only B travels.
    """

    broadcasts: ClassVar[tuple[str, ...]] = ("B",)
    averages: ClassVar[bool] = True
    mean_only: ClassVar[bool] = True
    exact = True

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted mean of B, with A as it was."""
        return weighted_mean(state, updates)
