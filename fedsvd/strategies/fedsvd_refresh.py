"""FedSVD-Refresh: keep the leading directions of B A, bring new ones in for the rest."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import Tensor

from fedsvd.errors import InputError, one_of, wrong
from fedsvd.lowrank import AdapterState, LowRank, refactorise
from fedsvd.lowrank.subspace import fresh_rows, leading, rows_from
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.strategies.base import PublicView, Strategy, Update, weighted_mean

TAILS = ("drop", "fold")
DIRECTIONS = ("random", "leading", "trailing", "inputs", "gradients")


@final
class FedSvdRefresh(Strategy):
    """Refactorise B A = U S V^T, keep k directions, replace the other rows of A by fresh ones.

    FedSVD's row space of A never moves under SGD (docs/fedsvd.md); here it does. Of the r directions
    the k leading stay: `keep` of them or, if that is None, as many as hold the share `energy` of
    sum S^2. The r - k others get random orthonormal rows, orthogonal to those kept, with columns of B
    at 0. Their part of the product, the tail, is dropped (not exact), or with `tail` "fold" added to
    the frozen weight (exact; a dense update per layer then travels). The rows are from the stream
    (seed, "subspace", round, layer); between rounds that `period` divides only B is averaged.

    `directions` other than "random" take the new rows from an orthonormal list, made orthogonal to
    those kept: the right singular vectors of the pretrained weight from the "leading" or the
    "trailing" end, or the principal directions of the layer's "inputs" on public texts
    (data.public). Each refresh goes on in the list a rank after the one before, and round it. With
    "gradients" the list is made anew: the right singular vectors of the gradient dL/dW of public
    texts with labels, at the model that the round led to, which says where it would go next.
    """

    broadcasts: ClassVar[tuple[str, ...]] = ("A", "B", "W")
    mean_only: ClassVar[bool] = True

    def __init__(
        self, keep: int | None = None, energy: float = 0.9, period: int = 1, tail: str = "drop",
        directions: str = "random", seed: int = 0,
    ) -> None:  # fmt: skip
        if keep is not None and keep < 0:
            raise wrong("strategy.keep", keep, "a whole number of at least 0, or null")
        if not 0 < energy <= 1:
            raise wrong("strategy.energy", energy, "in (0, 1]")
        if period < 1:
            raise wrong("strategy.period", period, "a whole number of at least 1")
        if tail not in TAILS:
            raise one_of("strategy.tail", tail, TAILS)
        if directions not in DIRECTIONS:
            raise one_of("strategy.directions", directions, DIRECTIONS)
        self.keep, self.energy, self.period = keep, energy, period
        self.directions, self.needs_public = directions, directions in ("inputs", "gradients")
        self._lists: dict[str, Tensor] = {}  # derived, so not part of the state
        self.tail, self.seed = tail, seed
        self.exact = self.idempotent = self.fixed_point = tail == "fold"

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the mean of B, refactorised and refreshed if the round is due."""
        mean = weighted_mean(state, updates)
        if state.round % self.period:
            return mean
        double = {k: LowRank(p.A.double(), p.B.double()) for k, p in mean.factors.items()}
        factors, base = {}, dict(mean.base)
        if self.directions == "gradients":
            self._lists = self._now(mean)
        for layer, pair in refactorise(replace(mean, factors=double)).factors.items():
            old = mean.factors[layer]
            r = pair.rank
            k = leading(pair.B.norm(dim=0), self.energy) if self.keep is None else self.keep
            k = min(k, r)
            fresh = self._fresh(layer, pair.A[:k], r, state.round)
            A, B = torch.cat([pair.A[:k], fresh]), pair.B.clone()
            B[:, k:] = 0
            if self.tail == "fold" and k < r:
                tail = pair.B[:, k:] @ pair.A[k:]
                before = base.get(layer, torch.zeros_like(tail)).double()
                base[layer] = (before + tail).to(old.B.dtype)
            factors[layer] = LowRank(A.to(old.A.dtype), B.to(old.B.dtype))
        return replace(mean, factors=factors, base=base)

    def _fresh(self, layer: str, kept: Tensor, rank: int, round: int) -> Tensor:
        """Return the rank - k rows (float64) that follow the kept rows (k, d) of a layer's A."""
        count = rank - len(kept)
        generator = torch_stream(self.seed, Purpose.SUBSPACE, round, layer)
        if self.directions == "random":
            return fresh_rows(kept, count, generator)
        if layer not in self._lists:
            self._lists[layer] = self._list(layer).to(kept.device)
        listed = self._lists[layer]
        if self.directions == "gradients":
            return rows_from(listed, kept, count, generator)
        start = (round // self.period - 1) * rank % len(listed)
        return rows_from(torch.roll(listed, -start, dims=0), kept, count, generator)

    def _view(self) -> PublicView:
        if self.public is None:
            raise InputError(f"strategy.directions: {self.directions!r} needs the run's model")
        return self.public

    def _now(self, mean: AdapterState) -> dict[str, Tensor]:
        """Return each layer's right singular vectors of the public gradient, the largest first."""
        found = self._view().weight_gradients(mean)
        return {n: torch.linalg.svd(G, full_matrices=False)[2] for n, G in found.items()}

    def _list(self, layer: str) -> Tensor:
        """Return the layer's directions as orthonormal rows, in the order of their use."""
        view = self._view()
        if self.directions == "inputs":
            return torch.linalg.eigh(view.moment(layer).double())[1].mT.flip(0)
        V = torch.linalg.svd(view.weight(layer).double(), full_matrices=False)[2]
        return V if self.directions == "leading" else V.flip(0)
