"""Fed-PLoRA: every client trains a random few of the rank components, the others folded away."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch

from fedsvd.client.components import drawn
from fedsvd.client.rule import LocalRule
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.randomness import Purpose, stream_key
from fedsvd.strategies.base import Strategy, Update, weighted_extra


@final
class FedPLora(Strategy):
    """Average row j of A and column j of B over the clients that trained component j.

    Fed-PLoRA (Zhang, Hu, Xu, ICLR 2026, arXiv 2602.16936, sections 3.2 to 3.4; from secondary
    sources, neither the paper's text nor its code could be read). B A = sum_j B[:, j] A[j] is R
    modules of rank 1. A client of rank r_k (`clients.ranks`) draws r_k of them anew in every round,
    trains those, and folds the others into its frozen weights, W + sum of B[:, j] A[j] over them, so
    that it starts from the whole global model. One that nobody trained stays as it is. The mean is
    weighted by the p_k over their sum among those who trained a module; the paper divides by the
    number of them, which is the same where clients weigh alike. Without `clients.ranks` it is FedAvg.
    Not exact.

    Draws are from the stream (key, "subspace", round, client), with a key of (seed, "subspace",
    "components"); one draw holds for all layers of a rank.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    averages: ClassVar[bool] = True
    any_rank: ClassVar[bool] = True

    def __init__(self, seed: int = 0) -> None:
        # Sent to the clients as a whole number, for which a message has 63 bits.
        self.key = 1 + stream_key(seed, Purpose.SUBSPACE, "components") % 2**60
        self.local = LocalRule(folds=self.key)

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the means of the components over who trained them, and the mean of the head."""
        factors = {}
        for layer, old in state.factors.items():
            A, B = torch.zeros_like(old.A).double(), torch.zeros_like(old.B).double()
            weight = torch.zeros(old.rank, dtype=torch.float64, device=A.device)
            for u in updates:
                pair = u.state.factors[layer]
                at = drawn(self.key, state.round, u.client, pair.rank, old.rank).to(A.device)
                A[at] += u.weight * pair.A.double()
                B[:, at] += u.weight * pair.B.double()
                weight[at] += u.weight
            seen, share = weight > 0, torch.where(weight > 0, weight, 1.0)
            factors[layer] = LowRank(
                torch.where(seen.unsqueeze(1), A / share.unsqueeze(1), old.A.double()).to(old.A),
                torch.where(seen, B / share, old.B.double()).to(old.B),
            )
        return replace(weighted_extra(state, updates), factors=factors)
