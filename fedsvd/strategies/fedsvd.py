"""FedSVD: average B, then make A the right singular vectors of B A."""

from collections.abc import Sequence
from typing import ClassVar, final

from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import AdapterState, refactorise
from fedsvd.lowrank.refactor import SPLITS
from fedsvd.strategies.base import Strategy, Update, weighted_mean


@final
class FedSVD(Strategy):
    """Average B and refactorise B A = U S V^T into A = V^T, B = U S, every `period` rounds.

    Lee et al., NeurIPS 2025 (arXiv 2505.12805), equation 5 and algorithm 1. The product is kept
    exactly and the step uses only what clients released, so it costs no privacy. Between the
    rounds it is FFA-LoRA; see docs/fedsvd.md for what the step changes and what it does not.

    `split` "balanced" is the paper's ablation A = S^1/2 V^T, B = U S^1/2. A direction whose singular
    value is 0 has both its row of A and its column of B at 0 then, and training B alone does not
    bring it back.
    """

    exact = True
    mean_only: ClassVar[bool] = True

    def __init__(self, period: int = 1, split: str = "svd") -> None:
        if period < 1:
            raise wrong("strategy.period", period, "a whole number of at least 1")
        if split not in SPLITS:
            raise one_of("strategy.split", split, SPLITS)
        self.period, self.split = period, split

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the mean of B, refactorised if the round is due."""
        mean = weighted_mean(state, updates)
        return refactorise(mean, self.split) if state.round % self.period == 0 else mean
