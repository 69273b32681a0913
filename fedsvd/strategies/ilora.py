"""ILoRA's aggregation: the mean product by a QR decomposition."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch

from fedsvd.lowrank import AdapterState, LowRank, weighted_sum
from fedsvd.lowrank.ranks import pad
from fedsvd.strategies.base import Strategy, Update, weighted_extra


@final
class ILora(Strategy):
    """B = Q[:, :r] and A = R[:r] of sum p_k B_k A_k = Q R; without the paper's control variates.

    ILoRA (Zhou, Liu, Shang, CVPR 2026, arXiv 2511.16069, concatenated QR aggregation). The QR is not
    pivoted, so B spans the first r columns of the mean product, whichever they are: exact where the
    product's rank is at most r, and far from the best approximation of rank r where it is not
    (FlexLoRA's). A client of rank r_k (`clients.ranks`) takes the first r_k columns of Q and rows of
    R. The paper and its code decompose the dense product; with stacked B = Q_b R_b the QR of R_b
    times the stacked A gives the same, in the sum of the clients' ranks. The diagonal of R is not
    negative. The paper's start, B = Q[:, :r] and A = R[:r] of the frozen weight, which loses B A, is
    `adapter=olora`.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    any_rank: ClassVar[bool] = True

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the first columns and rows of the mean product's QR, and the mean of the head."""
        factors, weights = {}, [u.weight for u in updates]
        for layer, old in state.factors.items():
            stacked = weighted_sum([u.state.factors[layer] for u in updates], weights)
            # Few small clients have fewer components than A has rows; the others get A = 0.
            new = qr(pad(stacked, max(stacked.rank, old.rank)), old.rank)
            factors[layer] = LowRank(new.A.to(old.A), new.B.to(old.B))
        return replace(weighted_extra(state, updates), factors=factors)


def qr(pair: LowRank, rank: int) -> LowRank:
    """Return B = Q[:, :rank] and A = R[:rank] of the QR decomposition B A = Q R of a pair's product.

    The product is not formed. Q has orthonormal columns, and the diagonal of R is not negative.
    """
    Q, R = torch.linalg.qr(pair.B)
    Q2, R2 = torch.linalg.qr(R @ pair.A)
    sign = torch.where(R2.diagonal()[:rank] < 0, -1.0, 1.0).to(R2)
    return LowRank(sign.unsqueeze(1) * R2[:rank], (Q @ Q2[:, :rank]) * sign)
