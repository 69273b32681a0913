"""Weighted averages of states."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedsvd.lowrank.grassmann import SUBSPACES, mean_subspaces
from fedsvd.lowrank.pair import AdapterState


def average(
    states: Sequence[AdapterState], weights: Sequence[float], into: AdapterState | None = None
) -> AdapterState:
    """Return `into` (default: the first state) with every tensor replaced by its weighted mean.

    Each factor is averaged by itself: A = sum p_k A_k and B = sum p_k B_k, p_k = w_k / sum w. Sums
    run in the order of `states` in float64 and come back in each tensor's own dtype; the product
    of the averages is the average of the products only if all A (or all B) are equal. Bases of a
    head's subspaces are no numbers to average: their mean is that of the projectors.

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
    base = into or states[0]
    named, start = [state.tensors() for state in states], base.tensors()
    means: dict[str, Tensor] = {}
    for dtype in {t.dtype for t in named[0].values()}:
        like = {
            n: t
            for n, t in named[0].items()
            if t.dtype == dtype and n != SUBSPACES and not _untouched(n, start, named)
        }
        if not like:
            continue
        # One long vector a state: many small sums would cost more than their bytes.
        parts = [t.reshape(-1) for t in like.values()]
        mean = torch.zeros(sum(map(len, parts)), dtype=torch.float64, device=parts[0].device)
        for tensors, weight in zip(named, weights, strict=True):
            mean.add_(torch.cat([tensors[n].reshape(-1) for n in like]), alpha=weight / total)
        split = mean.to(dtype).split([len(p) for p in parts])
        means.update({n: p.view(like[n].shape) for n, p in zip(like, split, strict=True)})
    if SUBSPACES in named[0] and not _untouched(SUBSPACES, start, named):
        bases = [tensors[SUBSPACES] for tensors in named]
        means[SUBSPACES] = mean_subspaces(bases, weights, start[SUBSPACES])
    return base.update(means)


def _untouched(
    name: str, start: Mapping[str, Tensor], named: Sequence[Mapping[str, Tensor]]
) -> bool:
    """Return whether all states hold the very tensor of the start: nobody trained it."""
    return all(tensors[name] is start[name] for tensors in named)
