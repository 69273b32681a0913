"""LA-LoRA: A and B alternate within a client's round, on filtered gradients."""

from collections.abc import Sequence
from typing import ClassVar, final

from fedsvd.client.rule import LocalRule
from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState
from fedsvd.strategies.base import Strategy, Update, weighted_mean


@final
class LaLora(Strategy):
    """Odd local steps train B, even ones A; gradients pass a Gaussian filter after the noise.

    LA-LoRA (Liu et al., ICLR 2026, arXiv 2602.19926). The server averages A = sum p_k A_k and
    B = sum p_k B_k. The filter runs along the model's axis of each factor with a standard deviation
    of `smoothing` entries; 0 filters nothing. In a step only one factor is noised, so no product of
    two noises enters B A.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    averages: ClassVar[bool] = True
    mean_only: ClassVar[bool] = True

    def __init__(self, smoothing: float = 1.0) -> None:
        if not 0 <= smoothing < float("inf"):
            raise wrong("strategy.smoothing", smoothing, "a number of at least 0")
        self.local = LocalRule(alternates=True, smoothing=smoothing)

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted means of A, B and the head."""
        return weighted_mean(state, updates)
