"""A robust low-rank aggregate of the clients' updates by density power divergence."""

from collections.abc import Sequence
from typing import ClassVar, final

import torch

from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.robust import rank_one, weighted_median
from fedsvd.strategies.base import Strategy, Update
from fedsvd.strategies.checks import check_tolerance


@final
class RsvdDpd(Strategy):
    """Fit X = sum_j a_j b_j^T robustly, one rank at a time; move by sum_j median(b_j) a_j.

    rSVDdpd (Roy, Basu, Ghosh, arXiv 2109.10680). For each layer's B, and for the head, the column k
    of X (entries, K) is client k's update. Each rank-one fit weighs an entry by
    exp(-alpha (x - a b)^2 / (2 sigma^2)) and is then deflated. What is common to the clients is the
    a_j; how far each moved is b_jk, of which the median, weighted by p_k, is taken: one client's
    scale is its own to choose, so a mean would not be robust to it. A stays as it was.
    """

    broadcasts: ClassVar[tuple[str, ...]] = ("B",)
    needs_equal_A: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, alpha: float = 0.3, ranks: int = 1, tolerance: float = 1e-4) -> None:
        if not 0 < alpha <= 1:
            raise wrong("strategy.alpha", alpha, "in (0, 1]")
        if ranks < 1:
            raise wrong("strategy.ranks", ranks, "a whole number of at least 1")
        check_tolerance(tolerance)
        self.alpha, self.ranks, self.tolerance = alpha, ranks, tolerance

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the state moved by the robust aggregate of every trained tensor."""
        sent = [u.state.tensors() for u in updates]
        moved = {}
        for name, old in state.select(("B", "extra")).items():
            # What is stored in 16 bits is worked on in 32.
            work = torch.promote_types(old.dtype, torch.float32)
            rows = torch.stack([t[name].reshape(-1) for t in sent]).to(work)
            X = rows.sub_(old.reshape(-1).to(work)).mT
            p = torch.tensor([u.weight for u in updates], dtype=torch.float64, device=X.device)
            step = torch.zeros_like(X[:, 0], dtype=torch.float64)
            for _ in range(min(self.ranks, len(updates))):
                a, b = rank_one(X, p, self.alpha, self.tolerance)
                step = step + a.double() * weighted_median(b, p)
                X = X - a[:, None] * b
            moved[name] = (old.double() + step.view(old.shape)).to(old.dtype)
        return state.update(moved)
