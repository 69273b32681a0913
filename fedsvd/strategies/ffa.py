"""FFA-LoRA: A is frozen at its initial value everywhere."""

from collections.abc import Sequence
from typing import ClassVar, final

from fedsvd.lowrank import AdapterState
from fedsvd.strategies.base import Strategy, Update, weighted_mean
from fedsvd.strategies.spectral import check_strength, dual_average


@final
class FFA(Strategy):
    """Keep A fixed and equal everywhere; train and average B (Sun et al., ICLR 2024, 2403.12313).

    Exact: (sum p_k B_k) A = sum p_k B_k A. Clients derive A from the run's seed, so only B travels.

    `strength` above 0 is no part of FFA-LoRA as published: it shrinks the singular values of B at the
    noise level (`fedsvd.strategies.spectral`). Under privacy the step is then not exact.
    """

    broadcasts: ClassVar[tuple[str, ...]] = ("B",)
    averages: ClassVar[bool] = True
    mean_only: ClassVar[bool] = True
    adds_moves = True

    def __init__(self, strength: float = 0.0) -> None:
        self.strength = check_strength(strength)
        self.needs_noise = strength > 0
        self.exact = self.idempotent = self.fixed_point = strength == 0

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted mean of B, shrunk if so set, with A as it was."""
        mean = weighted_mean(state, updates)
        if self.strength and self.noise is not None:
            return dual_average(state, mean, "B", self.noise, self.strength, "B")
        return mean
