"""FedAvg on LoRA factors."""

from collections.abc import Sequence
from typing import ClassVar, final

from fedsvd.lowrank import AdapterState
from fedsvd.strategies.base import Strategy, Update, weighted_mean


@final
class FedAvg(Strategy):
    """Train A and B; average each: A = sum p_k A_k, B = sum p_k B_k.

    Known as FedIT for LoRA (Zhang et al., ICASSP 2024, arXiv 2305.05644). The product of the means
    is not the mean of the products B_k A_k.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    averages: ClassVar[bool] = True
    mean_only: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted mean of both factors."""
        return weighted_mean(state, updates)
