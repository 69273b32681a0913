"""HetLoRA: clients of different ranks, weighted by the size of what they found."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch

from fedsvd.client.rule import LocalRule, tail_start
from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState, LowRank, norm
from fedsvd.lowrank.ranks import pad
from fedsvd.strategies.base import Strategy, Update, weighted_extra

GIVEN = "rank."  # in the state's memory: the rank that a client was pruned to


@final
class HetLora(Strategy):
    """Average zero-padded A_k and B_k with weights ||B_k A_k||_F / sum; prune ranks that empty.

    HetLoRA (Cho et al., EMNLP 2024, arXiv 2401.06432). A client of rank r_k takes the first r_k rows
    of A and columns of B. Its loss has the penalty lambda ||B[:, t:]|| ||A[t:]|| on the components
    from t = floor(gamma r_k) on, of every layer; where that product, summed over layers, falls during
    a round, the client's rank falls to t for the rest of the run. Not exact.

    The pruning compares what a client was sent with what it sent back, so it is decided here and
    told with the next round: post-processing. `gamma` 1 prunes nothing. Where the server has one
    noised mean in the clients' place nobody's rank can be told, and `gamma` must be 1.

    The numbers of examples do not enter the factors' weights; the head is averaged with p_k. Weights
    are taken layer by layer, a choice of ours: no official code was found. Where no client has a
    product, all count alike.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    any_rank: ClassVar[bool] = True
    weighted = False
    weightless = True
    any_scale = True

    def __init__(self, gamma: float = 0.99, penalty: float = 1e-3) -> None:
        if not 0 < gamma <= 1:
            raise wrong("strategy.gamma", gamma, "in (0, 1]")
        if not 0 <= penalty < float("inf"):
            raise wrong("strategy.penalty", penalty, "a number of at least 0")
        self.gamma, self.tells_clients_apart = gamma, gamma < 1
        self.local = LocalRule(penalty=penalty if gamma < 1 else 0.0, tail=gamma)

    def ranks_of(self, state: AdapterState) -> dict[int, int]:
        """Return the ranks of the clients that were pruned."""
        given = {n: t for n, t in state.memory.items() if n.startswith(GIVEN)}
        return {int(n.removeprefix(GIVEN)): int(t) for n, t in given.items()}

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted mean of the padded factors, and the mean of the head."""
        factors = {}
        for layer, old in state.factors.items():
            pairs = [u.state.factors[layer] for u in updates]
            sizes = [float(norm(pair)) for pair in pairs]
            if not any(sizes):  # nobody has a product yet
                sizes = [1.0] * len(pairs)
            A, B = torch.zeros_like(old.A).double(), torch.zeros_like(old.B).double()
            for size, pair in zip(sizes, pairs, strict=True):
                padded = pad(pair, old.rank)
                A += size / sum(sizes) * padded.A
                B += size / sum(sizes) * padded.B
            factors[layer] = LowRank(A.to(old.A), B.to(old.B))
        memory = {**state.memory, **self._pruned(state, updates)}
        return replace(weighted_extra(state, updates), factors=factors, memory=memory)

    def _pruned(self, state: AdapterState, updates: Sequence[Update]) -> dict[str, torch.Tensor]:
        """Return the new ranks of clients whose tail shrank, as scalar tensors by memory name."""
        found: dict[str, torch.Tensor] = {}
        if not state.factors:  # adapter=none: nothing has a rank
            return found
        dtype = next(iter(state.factors.values())).A.dtype
        for u in updates:
            rank = max(pair.rank for pair in u.state.factors.values())
            t = tail_start(self.gamma, rank)
            if t < rank and tail(u.state, t, rank) < tail(state, t, rank):
                found[f"{GIVEN}{u.client}"] = torch.tensor(float(t), dtype=dtype)
        return found


def tail(state: AdapterState, start: int, end: int) -> float:
    """Return sum over layers of ||B[:, start:end]||_F ||A[start:end]||_F."""
    pairs = state.factors.values()
    return float(sum(p.B[:, start:end].norm() * p.A[start:end].norm() for p in pairs))
