"""FedSVD: average B, then make A the right singular vectors of B A."""

from collections.abc import Sequence
from typing import final

from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState, average, refactorise
from fedsvd.strategies.base import Strategy, Update


@final
class FedSVD(Strategy):
    """Average B and refactorise B A = U S V^T into A = V^T, B = U S, every `period` rounds.

    Lee et al., NeurIPS 2025 (arXiv 2505.12805), equation 5 and algorithm 1. The product is kept
    exactly and the step uses only what clients released, so it costs no privacy. Between the
    rounds it is FFA-LoRA; see docs/fedsvd.md for what the step changes and what it does not.
    """

    def __init__(self, period: int = 1) -> None:
        if period < 1:
            raise wrong("strategy.period", period, "a whole number of at least 1")
        self.period = period

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the mean of B, refactorised if the round is due."""
        mean = average([u.state for u in updates], [u.weight for u in updates], into=state)
        return refactorise(mean) if state.round % self.period == 0 else mean
