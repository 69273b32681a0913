"""Weighted sums of products B A, kept as one pair of higher rank."""

from collections.abc import Sequence

import torch

from fedsvd.lowrank.pair import LowRank


def weighted_sum(pairs: Sequence[LowRank], weights: Sequence[float]) -> LowRank:
    """Return a pair whose product is sum p_k B_k A_k, of the sum of the ranks, in float64.

    A stacks the A_k below each other, B the p_k B_k beside each other. Ranks may differ.
    """
    A = torch.cat([pair.A.double() for pair in pairs])
    B = torch.cat([w * pair.B.double() for pair, w in zip(pairs, weights, strict=True)], dim=1)
    return LowRank(A, B)


def difference(x: LowRank, y: LowRank) -> LowRank:
    """Return a pair whose product is B_x A_x - B_y A_y, of the sum of the ranks."""
    return LowRank(torch.cat([x.A, y.A]), torch.cat([x.B, -y.B], dim=1))
