"""Geometric median of the clients' products."""

from collections.abc import Sequence
from typing import ClassVar, final

import torch

from fedsvd.lowrank import AdapterState, average
from fedsvd.lowrank.distance import root_of_gram
from fedsvd.lowrank.robust import geometric_median
from fedsvd.strategies.base import Strategy, Update
from fedsvd.strategies.checks import check_tolerance


@final
class GeometricMedian(Strategy):
    """The weighted geometric median of the updates (B_k - B) A of all layers and of the head.

    RFA (Pillutla, Kakade, Harchaoui, IEEE TSP 2022, arXiv 1912.13445), over the product in factored
    form: clients hold one A, so with A A^T = C C^T distances between products are those of the
    (B_k - B) C, and Weiszfeld's iteration runs on their K x K Gram matrix. The median is a convex
    combination of the clients, so the result is B = sum w_k B_k with A as it was. It tolerates
    clients of up to half the weight that send anything finite. `tolerance` is its accuracy relative
    to the clients' spread.
    """

    broadcasts: ClassVar[tuple[str, ...]] = ("B",)
    needs_equal_A: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, tolerance: float = 1e-6) -> None:
        check_tolerance(tolerance)
        self.tolerance = tolerance

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the combination of the clients that is their geometric median."""
        points = []
        for layer, pair in state.factors.items():
            C = root_of_gram(pair.A)
            moved = [u.state.factors[layer].B.double() - pair.B.double() for u in updates]
            points.append(torch.stack([(D @ C).reshape(-1) for D in moved]))
        for name, old in state.extra.items():
            moved = [u.state.extra[name].double() - old.double() for u in updates]
            points.append(torch.stack([D.reshape(-1) for D in moved]))
        gram = torch.stack([X @ X.mT for X in points]).sum(0)
        p = torch.tensor([u.weight for u in updates], dtype=gram.dtype, device=gram.device)
        w = geometric_median(gram, p, self.tolerance)
        return average([u.state for u in updates], w.tolist(), into=state)
