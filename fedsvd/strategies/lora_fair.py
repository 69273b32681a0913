"""LoRA-FAIR: correct the averaged B for what averaging the factors loses."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch

from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.strategies.base import Strategy, Update, weighted_mean


@final
class LoraFair(Strategy):
    """Average A and B, then add to B the dB that brings B A closest to sum p_k B_k A_k.

    LoRA-FAIR (Bian et al., ICCV 2025, arXiv 2411.14961). dB minimises
    ||(B + dB) A - sum p_k B_k A_k||_F^2 + penalty ||dB||_F^2, solved in closed form:
    dB = (sum p_k B_k A_k A^T - B A A^T) (A A^T + penalty I)^-1. (The paper descends on a cosine
    similarity with a penalty on dB.) The row space stays that of the mean A, so it is not exact.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")

    def __init__(self, penalty: float = 0.01) -> None:
        if not 0 < penalty < float("inf"):
            raise wrong("strategy.penalty", penalty, "a number above 0")
        self.penalty = penalty

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the mean of A, and the mean of B with its correction."""
        mean, factors = weighted_mean(state, updates), {}
        for layer, pair in mean.factors.items():
            A, B = pair.A.double(), pair.B.double()
            gram = A @ A.mT
            missing = -B @ gram
            for u in updates:
                sent = u.state.factors[layer]
                missing += u.weight * (sent.B.double() @ (sent.A.double() @ A.mT))
            ridge = gram + self.penalty * torch.eye(len(A), dtype=A.dtype, device=A.device)
            dB = torch.linalg.solve(ridge, missing.mT).mT
            factors[layer] = LowRank(pair.A, (B + dB).to(pair.B.dtype))
        return replace(mean, factors=factors)
