"""FedASK: the mean product through a two-stage random sketch."""

from collections.abc import Sequence
from dataclasses import replace
from typing import final

import torch

from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.strategies.base import Strategy, Update, weighted_mean


@final
class FedAsk(Strategy):
    """Sketch sum p_k B_k A_k twice, take the small SVD, and split it evenly over A and B.

    FedASK (Wen et al., NeurIPS 2025, arXiv 2507.09990; checked against the released code): Y = sum
    p_k B_k (A_k O) with O Gaussian, Q = qr(Y); Z = sum p_k (Q^T B_k) A_k = U S V^T; A = S^1/2 V^T,
    B = Q U S^1/2, both cut to rank r. Here the server forms both sketches from the factors it was
    sent, and draws an O (d_in, r + oversampling) a round and layer, from the stream (seed,
    "sketch", round, layer), where the released code keeps its first.

    Clients train B alone and hold one A (as with DP-SGD in the paper), so the mean has rank r, the
    sketch is exact, and this is FedSVD with the balanced split. With training.factors=AB, K'
    clients of a round give a mean of rank up to K' r: `oversampling` None takes the (K' - 1) r
    columns more for which the sketch is exact, and what is cut to rank r is then the best
    approximation. As with every even split, a direction whose singular value is 0 is lost to
    clients that train B alone.
    """

    exact = True  # where clients train B alone

    def __init__(self, oversampling: int | None = None, seed: int = 0) -> None:
        if oversampling is not None and oversampling < 0:
            raise wrong(
                "strategy.oversampling", oversampling, "null or a whole number of at least 0"
            )
        self.oversampling, self.seed = oversampling, seed

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the sketched mean product with its balanced split, and the mean of the head."""
        mean, factors = weighted_mean(state, updates), {}
        for layer, pair in state.factors.items():
            r, d_in = pair.A.shape
            more = self._more(pair, updates, layer)
            generator = torch_stream(self.seed, Purpose.SKETCH, state.round, layer)
            O = torch.randn(  # noqa: E741
                d_in, min(r + more, d_in), generator=generator, dtype=torch.float64
            ).to(pair.A.device)
            sent = [(u.weight, u.state.factors[layer]) for u in updates]
            Y = sum(p * (x.B.double() @ (x.A.double() @ O)) for p, x in sent)
            Q = torch.linalg.qr(Y).Q
            Z = sum(p * ((Q.mT @ x.B.double()) @ x.A.double()) for p, x in sent)
            U, S, Vh = torch.linalg.svd(Z, full_matrices=False)
            root = torch.zeros(r, dtype=S.dtype, device=S.device)
            root[: len(S)] = S[:r].sqrt()
            A, B = torch.zeros_like(pair.A), torch.zeros_like(pair.B)
            A[: len(S)] = (root[: len(S), None] * Vh[:r]).to(A.dtype)
            B[:, : len(S)] = (Q @ U[:, :r] * root[: len(S)]).to(B.dtype)
            factors[layer] = LowRank(A, B)
        return replace(mean, factors=factors)

    def _more(self, pair: LowRank, updates: Sequence[Update], layer: str) -> int:
        """Return the columns of the sketch beyond the rank."""
        if self.oversampling is not None:
            return self.oversampling
        own = sum(u.state.factors[layer].A is not pair.A for u in updates)  # trained: not as sent
        return pair.rank * max(0, own - 1)
