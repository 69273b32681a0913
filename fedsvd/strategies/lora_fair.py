"""LoRA-FAIR: correct the averaged B for what averaging the factors loses."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import Tensor

from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import AdapterState, LowRank, norm, weighted_sum
from fedsvd.lowrank.cosine import turned
from fedsvd.strategies.base import Strategy, Update, weighted_mean

OBJECTIVES = ("cosine", "ridge")


@final
class LoraFair(Strategy):
    """Average A and B, then add to B the dB that turns B A towards G = sum p_k B_k A_k.

    LoRA-FAIR (Bian et al., ICCV 2025, arXiv 2411.14961), equation 8 with lambda = `penalty`: dB
    maximises cos((B + dB) A, G) - lambda ||dB||_F. (The paper writes a minimum of the similarity
    and solves it by SGD; here the maximum is found in factored form, see fedsvd.lowrank.cosine.)
    The cosine leaves the length of B A free, and ||dB|| counts in the units of B. The row space
    stays that of the mean A, so it is not exact. Equation and lambda are from a secondary source;
    the official code was not to be had.

    `objective` "ridge" is another rule: dB minimises ||(B + dB) A - G||_F^2 + penalty ||dB||_F^2,
    dB = (G A^T - B A A^T) (A A^T + penalty I)^-1, close to the whole correction for any small
    penalty.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")

    def __init__(self, penalty: float = 0.01, objective: str = "cosine") -> None:
        if objective not in OBJECTIVES:
            raise one_of("strategy.objective", objective, OBJECTIVES)
        if not 0 <= penalty < float("inf") or (objective == "ridge" and penalty == 0):
            least = "above 0 with objective=ridge" if objective == "ridge" else "of at least 0"
            raise wrong("strategy.penalty", penalty, f"a number {least}")
        self.penalty, self.objective = penalty, objective

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the mean of A, and the mean of B with its correction."""
        mean, factors = weighted_mean(state, updates), {}
        weights = [u.weight for u in updates]
        for layer, pair in mean.factors.items():
            A, B = pair.A.double(), pair.B.double()
            G = weighted_sum([u.state.factors[layer] for u in updates], weights)
            C, H = A @ A.mT, G.B @ (G.A @ A.mT)
            if self.objective == "cosine":
                new = turned(B, C, H, norm(G), self.penalty)
            else:
                new = B + _ridge(C, H - B @ C, self.penalty)
            factors[layer] = LowRank(pair.A, new.to(pair.B.dtype))
        return replace(mean, factors=factors)


def _ridge(C: Tensor, missing: Tensor, penalty: float) -> Tensor:
    """Return missing (C + penalty I)^-1."""
    ridge = C + penalty * torch.eye(len(C), dtype=C.dtype, device=C.device)
    return torch.linalg.solve(ridge, missing.mT).mT
