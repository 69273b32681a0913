"""Weighted averages of states."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsvd.lowrank.pair import AdapterState


def average(
    states: Sequence[AdapterState], weights: Sequence[float], into: AdapterState | None = None
) -> AdapterState:
    """Return `into` (default: the first state) with every tensor replaced by its weighted mean.

    Each factor is averaged by itself: A = sum p_k A_k and B = sum p_k B_k, p_k = w_k / sum w. Sums
    run in the order of `states` in float64 and come back in each tensor's own dtype; the product
    of the averages is the average of the products only if all A (or all B) are equal.

    Raises ValueError if there are no states, lengths differ, or the weights do not sum to a
    positive finite number.
    """
    if not states or len(states) != len(weights):
        raise ValueError(
            f"{len(states)} states and {len(weights)} weights; need equally many, >= 1"
        )
    total = float(sum(weights))
    if min(weights) < 0 or not 0 < total < float("inf"):
        raise ValueError(f"weights must be >= 0 with a positive finite sum; got {list(weights)}")
    named = [state.tensors() for state in states]
    means: dict[str, Tensor] = {}
    for name, first in named[0].items():
        mean = torch.zeros_like(first, dtype=torch.float64)
        for tensors, weight in zip(named, weights, strict=True):
            mean.add_(tensors[name], alpha=weight / total)  # promoted to float64 as it is read
        means[name] = mean.to(first.dtype)
    return (into or states[0]).update(means)
