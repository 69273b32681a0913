"""FedSVD: average B, then make A the right singular vectors of B A."""

from collections.abc import Sequence
from typing import ClassVar, final

from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import AdapterState, refactorise, refactorise_pairs
from fedsvd.lowrank.refactor import SPLITS
from fedsvd.strategies.base import Strategy, Update, weighted_mean
from fedsvd.strategies.spectral import check_strength, dual_average


@final
class FedSVD(Strategy):
    """Average B and refactorise B A = U S V^T into A = V^T, B = U S, every `period` rounds.

    Lee et al., NeurIPS 2025 (arXiv 2505.12805), equation 5 and algorithm 1. The product is kept
    exactly and the step uses only what clients released, so it costs no privacy. Between the
    rounds it is FFA-LoRA; see docs/fedsvd.md for what the step changes and what it does not.

    `split` "balanced" is the paper's ablation A = S^1/2 V^T, B = U S^1/2. A direction whose singular
    value is 0 has both its row of A and its column of B at 0 then, and training B alone does not
    bring it back.

    `strength` above 0 is no part of FedSVD as published: it shrinks the singular values at the noise
    level (`fedsvd.strategies.spectral`). Under privacy the step is then not exact.
    """

    mean_only: ClassVar[bool] = True

    def __init__(self, period: int = 1, split: str = "svd", strength: float = 0.0) -> None:
        if period < 1:
            raise wrong("strategy.period", period, "a whole number of at least 1")
        if split not in SPLITS:
            raise one_of("strategy.split", split, SPLITS)
        if split != "svd" and strength:
            raise wrong("strategy.strength", strength, "0 with strategy.split=balanced")
        self.period, self.split = period, split
        self.strength = check_strength(strength)
        self.needs_noise = strength > 0
        self.adds_moves = split == "svd"
        self.exact = self.idempotent = self.fixed_point = strength == 0

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the mean of B, shrunk if so set, and refactorised if the round is due."""
        mean, due = weighted_mean(state, updates), state.round % self.period == 0
        if self.strength and self.noise is not None:
            turn = refactorise_pairs if due else None
            return dual_average(state, mean, "B", self.noise, self.strength, "B", turn)
        return refactorise(mean, self.split) if due else mean
