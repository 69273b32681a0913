"""Weighted averages of states."""

from collections.abc import Mapping, Sequence

import torch
from torch import Tensor

from fedsvd.lowrank.grassmann import SUBSPACES, mean_subspaces
from fedsvd.lowrank.pair import AdapterState

CACHED = 2**16  # numbers that a thread's share of a cache holds


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
    alike: dict[tuple[torch.Size, torch.dtype], list[str]] = {}
    for name, t in named[0].items():
        if name != SUBSPACES and not _untouched(name, start, named):
            alike.setdefault((t.shape, t.dtype), []).append(name)
    shares = [weight / total for weight in weights]
    for (shape, _), names in alike.items():
        mean = _mean([_vector([tensors[n] for n in names]) for tensors in named], shares)
        means.update(zip(names, mean.view(len(names), *shape).unbind(), strict=True))
    if SUBSPACES in named[0] and not _untouched(SUBSPACES, start, named):
        bases = [tensors[SUBSPACES] for tensors in named]
        means[SUBSPACES] = mean_subspaces(bases, weights, start[SUBSPACES])
    return base.update(means)


def _mean(vectors: Sequence[Tensor], shares: Sequence[float]) -> Tensor:
    """Return the sum of shares times vectors (n,), added up in float64, in their dtype."""
    like, n = vectors[0], len(vectors[0])
    # In pieces that stay in a processor's cache: fresh memory for all costs more than the sums.
    step = CACHED * torch.get_num_threads() if like.device.type == "cpu" else max(n, 1)
    mean, sums = torch.empty_like(like), like.new_empty(2, min(n, step), dtype=torch.float64)
    for begin in range(0, n, step):
        piece, term = sums[:, : n - begin]
        piece.zero_()
        for vector, share in zip(vectors, shares, strict=True):
            # In float64 here: `add_` would ask the system for new memory to do so in.
            piece.add_(term.copy_(vector[begin : begin + step]), alpha=share)
        mean[begin : begin + step] = piece
    return mean


def _vector(members: Sequence[Tensor]) -> Tensor:
    """Return tensors of one shape as one long vector: a view where they lie in a row in memory.

    So do those of a client's message.
    """
    first, last = members[0], members[-1]
    size = first.numel() * first.element_size()
    in_a_row = (
        all(
            t.is_contiguous() and t.data_ptr() == first.data_ptr() + k * size
            for k, t in enumerate(members)
        )
        and first.untyped_storage().data_ptr() == last.untyped_storage().data_ptr()
    )
    if in_a_row:
        return first.as_strided((len(members) * first.numel(),), (1,))
    return torch.cat([t.reshape(-1) for t in members])


def _untouched(
    name: str, start: Mapping[str, Tensor], named: Sequence[Mapping[str, Tensor]]
) -> bool:
    """Return whether all states hold the very tensor of the start: nobody trained it."""
    return all(tensors[name] is start[name] for tensors in named)
