"""Factors of fewer or more rows: what clients of different ranks exchange."""

from dataclasses import replace

import torch

from fedsvd.lowrank.pair import AdapterState, LowRank


def truncate(state: AdapterState, rank: int) -> AdapterState:
    """Return `state` with the first `rank` rows of every A and columns of every B.

    A layer of a lower rank keeps its own.
    """
    cut = {n: LowRank(p.A[:rank], p.B[:, :rank]) for n, p in state.factors.items()}
    return replace(state, factors=cut)


def pad(pair: LowRank, rank: int) -> LowRank:
    """Return a pair of rank `rank` with the same product: rows of A and columns of B at 0.

    Raises ValueError if the pair's rank is larger.
    """
    missing = rank - pair.rank
    if missing < 0:
        raise ValueError(f"a pair of rank {pair.rank} cannot be padded to rank {rank}")
    A, B = pair.A, pair.B
    return LowRank(
        torch.cat([A, A.new_zeros(missing, A.shape[1])]),
        torch.cat([B, B.new_zeros(B.shape[0], missing)], dim=1),
    )
