"""Averages of states as the functions they are: of products B A, not of factors."""

from collections import defaultdict
from collections.abc import Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsvd.lowrank.pair import AdapterState, LowRank
from fedsvd.lowrank.ranks import pad
from fedsvd.lowrank.refactor import refactorise_pairs
from fedsvd.lowrank.stack import weighted_sum

ROOM = 4  # times a pair's rank: the most singular triplets of an average that are kept


@dataclass(frozen=True)
class Average:
    """A weighted average of states: `state` as `blend` keeps it, and the sum of their weights.

    The last one's weight is 1.
    """

    state: AdapterState
    weight: float


def blend(average: AdapterState, state: AdapterState, share: float) -> AdapterState:
    """Return (1 - share) `average` + share `state`, for products, heads and dense updates.

    The products are kept as pairs in float64, of a rank that grows by that of `state` up to `ROOM`
    times it; smaller singular values are dropped then. So where all states have one row space (or
    column space) the average is exact. Tensors of the head are in float64, dense updates W in their
    own dtype; a layer that has none yet counts as W = 0. Memory is left out.
    """
    pairs = {
        n: weighted_sum([average.factors[n], pair], [1 - share, share])
        for n, pair in state.factors.items()
    }
    most = {n: ROOM * pair.rank for n, pair in state.factors.items()}
    extra = {n: _between(average.extra[n], t, share) for n, t in state.extra.items()}
    base = {
        n: _between(average.base.get(n), state.base.get(n), share).to(t.dtype)
        for n, t in {**average.base, **state.base}.items()
    }
    return AdapterState(cut(pairs, most), extra, state.round, base)


def started(state: AdapterState) -> AdapterState:
    """Return a state as the first of an average: see `blend`."""
    pairs = {n: LowRank(p.A.double(), p.B.double()) for n, p in state.factors.items()}
    extra = {n: t.double() for n, t in state.extra.items()}
    return AdapterState(pairs, extra, state.round, state.base)


def like(average: AdapterState, state: AdapterState) -> AdapterState:
    """Return the average in the shapes and dtypes of `state`, with its round and memory.

    B A is the best approximation of its rank; where a layer has a dense update W, what is left goes
    there, so that W + B A is the whole average.
    """
    ranks = {n: pair.rank for n, pair in state.factors.items()}
    kept, base, factors = cut(average.factors, ranks), dict(average.base), {}
    for n, pair in kept.items():
        old = state.factors[n]
        if n in base:
            whole = average.factors[n]
            rest = whole.B @ whole.A - pair.B @ pair.A
            base[n] = (base[n].double() + rest).to(base[n].dtype)
        full = pad(pair, old.rank)
        factors[n] = LowRank(full.A.to(old.A.dtype), full.B.to(old.B.dtype))
    extra = {n: t.to(state.extra[n].dtype) for n, t in average.extra.items()}
    return replace(state, factors=factors, extra=extra, base=base)


def cut(factors: Mapping[str, LowRank], ranks: Mapping[str, int]) -> dict[str, LowRank]:
    """Return every pair with orthonormal rows and at most its number of singular triplets."""
    groups: dict[tuple[int, ...], list[str]] = defaultdict(list)
    for n, pair in factors.items():
        groups[(*pair.A.shape, len(pair.B), ranks[n])].append(n)
    done: dict[str, LowRank] = {}
    for (rank, d_in, _, most), names in groups.items():
        wanted = min(rank, d_in, most)
        done.update(refactorise_pairs({n: factors[n] for n in names}, rank=wanted))
    # Strides, on which the last bits of a product depend, as a checkpoint gives them back.
    return {n: LowRank(done[n].A.contiguous(), done[n].B.contiguous()) for n in factors}


def _between(one: Tensor | None, other: Tensor | None, share: float) -> Tensor:
    """Return (1 - share) one + share other in float64, None counting as zeros."""
    if one is None or other is None:
        known = one if other is None else other
        assert known is not None
        return (1 - share if other is None else share) * known.double()
    return torch.lerp(one.double(), other.double(), share)
