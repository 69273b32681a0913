"""FedSVD-Refresh: keep the leading directions of B A, bring new ones in for the rest."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch

from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import AdapterState, LowRank, refactorise
from fedsvd.lowrank.subspace import fresh_rows, leading
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.strategies.base import Strategy, Update, weighted_mean

TAILS = ("drop", "fold")


@final
class FedSvdRefresh(Strategy):
    """Refactorise B A = U S V^T, keep k directions, replace the other rows of A by fresh ones.

    FedSVD's row space of A never moves under SGD (docs/fedsvd.md); here it does. Of the r directions
    the k leading stay: `keep` of them or, if that is None, as many as hold the share `energy` of
    sum S^2. The r - k others get random orthonormal rows, orthogonal to those kept, with columns of B
    at 0. Their part of the product, the tail, is dropped (not exact), or with `tail` "fold" added to
    the frozen weight (exact; a dense update per layer then travels). The rows are from the stream
    (seed, "subspace", round, layer); between rounds that `period` divides only B is averaged.
    """

    broadcasts: ClassVar[tuple[str, ...]] = ("A", "B", "W")

    def __init__(
        self, keep: int | None = None, energy: float = 0.9, period: int = 1, tail: str = "drop",
        seed: int = 0,
    ) -> None:  # fmt: skip
        if keep is not None and keep < 0:
            raise wrong("strategy.keep", keep, "a whole number of at least 0, or null")
        if not 0 < energy <= 1:
            raise wrong("strategy.energy", energy, "in (0, 1]")
        if period < 1:
            raise wrong("strategy.period", period, "a whole number of at least 1")
        if tail not in TAILS:
            raise one_of("strategy.tail", tail, TAILS)
        self.keep, self.energy, self.period = keep, energy, period
        self.tail, self.seed = tail, seed
        self.exact = self.idempotent = self.fixed_point = tail == "fold"

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the mean of B, refactorised and refreshed if the round is due."""
        mean = weighted_mean(state, updates)
        if state.round % self.period:
            return mean
        double = {k: LowRank(p.A.double(), p.B.double()) for k, p in mean.factors.items()}
        factors, base = {}, dict(mean.base)
        for layer, pair in refactorise(replace(mean, factors=double)).factors.items():
            old = mean.factors[layer]
            r = pair.rank
            k = leading(pair.B.norm(dim=0), self.energy) if self.keep is None else self.keep
            k = min(k, r)
            generator = torch_stream(self.seed, Purpose.SUBSPACE, state.round, layer)
            fresh = fresh_rows(pair.A[:k], r - k, generator)
            A, B = torch.cat([pair.A[:k], fresh]), pair.B.clone()
            B[:, k:] = 0
            if self.tail == "fold" and k < r:
                tail = pair.B[:, k:] @ pair.A[k:]
                before = base.get(layer, torch.zeros_like(tail)).double()
                base[layer] = (before + tail).to(old.B.dtype)
            factors[layer] = LowRank(A.to(old.A.dtype), B.to(old.B.dtype))
        return replace(mean, factors=factors, base=base)
