"""FedSVD with rows of A chosen among the columns of the discrete cosine transform."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import Tensor

from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.lowrank.subspace import dct, dct_rows
from fedsvd.strategies.base import Strategy, Update, weighted_mean
from fedsvd.strategies.fedsvd_refresh import TAILS

CHUNK = 64  # rows of G Q held at once


@final
class FedSvdDct(Strategy):
    """A = the r rows of the DCT that the mean B A aligns with most, B = the mean's part on them.

    With Q the orthogonal DCT-II matrix (d_in, d_in) and G = B A the released mean, the columns j of
    S = G Q with the largest l1 norm are chosen; A = Q[:, j]^T and B = S[:, j]. No SVD is needed. The
    part of G outside them is dropped (not exact) or, with `tail` "fold", added to the frozen weight.
    Where G is 0 nothing changes. A choice is made every `period` rounds; as long as clients train B
    alone, G stays in the rows chosen first, so the choice moves A once and then stays.
    """

    broadcasts: ClassVar[tuple[str, ...]] = ("A", "B", "W")
    mean_only: ClassVar[bool] = True

    def __init__(self, period: int = 1, tail: str = "drop") -> None:
        if period < 1:
            raise wrong("strategy.period", period, "a whole number of at least 1")
        if tail not in TAILS:
            raise one_of("strategy.tail", tail, TAILS)
        self.period, self.tail = period, tail
        self.exact = self.idempotent = self.fixed_point = tail == "fold"

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the mean of B, expressed in DCT rows if the round is due."""
        mean = weighted_mean(state, updates)
        if state.round % self.period:
            return mean
        factors, base = dict(mean.factors), dict(mean.base)
        for layer, pair in mean.factors.items():
            B, turned = pair.B.double(), dct(pair.A)
            if not B.any():
                continue
            index = strongest(B, turned, pair.rank)
            A = dct_rows(index, pair.A.shape[1])
            new_B = B @ turned[:, index]
            if self.tail == "fold":
                tail = B @ pair.A.double() - new_B @ A
                before = base.get(layer, torch.zeros_like(tail)).double()
                base[layer] = (before + tail).to(pair.B.dtype)
            factors[layer] = LowRank(A.to(pair.A.dtype), new_B.to(pair.B.dtype))
        return replace(mean, factors=factors, base=base)


def strongest(B: Tensor, turned: Tensor, count: int) -> Tensor:
    """Return, ascending, the `count` columns of B @ turned with the largest sums of magnitudes.

    B (d_out, r) and turned (r, d_in). The product is formed a few rows at a time.
    """
    total = torch.zeros(turned.shape[1], dtype=B.dtype, device=B.device)
    for rows in B.split(CHUNK):
        total += (rows @ turned).abs().sum(0)
    return total.topk(count).indices.sort().values
