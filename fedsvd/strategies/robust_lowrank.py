"""Robust low-rank recovery of what clients have in common, by sub-gradients of an l1 loss."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch

from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState, refactorise_pairs, weighted_sum
from fedsvd.lowrank.robust import weighted_median
from fedsvd.lowrank.subgradient import robust_fit
from fedsvd.strategies.base import Strategy, Update


@final
class RobustLowRank(Strategy):
    """Fit the clients' moves D_k = B_k A_k - B A by one low-rank D: min sum_k p_k ||D - D_k||_1.

    Adapted from robust matrix recovery from measurements, of which few are gross errors, with
    sub-gradient steps that decay geometrically (Li, Zhu, So, Vidal, SIAM J. Optim. 2020, arXiv
    1809.09237) and, as the rank is not known, `over` times the state's rank from a small start (Ma,
    Fattahi, arXiv 2202.08788): here the measurements are all entries of all clients' moves. The
    first is from memory and was not looked up, of the second the abstract was read; the balancing
    penalty of the first is left out, and the scales of start and step are ours. See `robust_fit`.

    The new B A is the best rank-r approximation of the old one plus D, as A with orthonormal rows
    and B = U S. The head is the weighted median, entry by entry. It forms (K, d_out, d_in) tensors,
    one layer at a time, and is a few thousandths of the move off even where all clients agree.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    idempotent = False

    def __init__(
        self,
        over: int = 2,
        init: float = 0.01,
        step: float = 0.5,
        decay: float = 0.98,
        steps: int = 300,
    ) -> None:
        for key, count in (("over", over), ("steps", steps)):
            if count < 1:
                raise wrong(f"strategy.{key}", count, "a whole number of at least 1")
        for key, value in (("init", init), ("step", step)):
            if not 0 < value <= 1:
                raise wrong(f"strategy.{key}", value, "in (0, 1]")
        if not 0 < decay < 1:
            raise wrong("strategy.decay", decay, "between 0 and 1")
        self.over, self.init, self.step, self.decay, self.steps = over, init, step, decay, steps

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the state moved by every layer's fit, cut to its rank, and the head's median."""
        factors, extra = dict(state.factors), {}
        for layer, pair in state.factors.items():
            sent = [u.state.factors[layer] for u in updates]
            old, *new = (weighted_sum([x], [1.0]) for x in (pair, *sent))  # in float64
            p = torch.tensor([u.weight for u in updates], dtype=torch.float64, device=old.B.device)
            moves = torch.stack([x.product() for x in new]) - old.product()
            rank = min(self.over * pair.rank, *moves.shape[1:])
            fit = robust_fit(moves, p, rank, self.init, self.step, self.decay, self.steps)
            if fit is not None:
                whole = weighted_sum([old, fit], [1.0, 1.0])
                factors |= refactorise_pairs({layer: whole}, rank=pair.rank, dtype=pair.A.dtype)
        for name, value in state.extra.items():
            p = torch.tensor([u.weight for u in updates], dtype=torch.float64, device=value.device)
            extra[name] = weighted_median(
                torch.stack([u.state.extra[name] for u in updates], -1), p
            )
        return replace(state, factors=factors, extra=extra)
