"""l2,1 aggregation: every row of a layer is the median of the clients' rows."""

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.distance import root_of_gram
from fedsvd.lowrank.rows import row_medians
from fedsvd.strategies.base import Strategy, Update
from fedsvd.strategies.checks import check_tolerance


@final
class L21(Strategy):
    """B A minimises sum_k p_k ||B A - B_k A||_2,1 in every layer, by reweighting clients row by row.

    Adapted from spectral unmixing, where the l2,1 norm of the residual keeps outlying channels from
    deciding (Zhu et al., arXiv 1409.0685, from its abstract; by iterative reweighting as in Nie et
    al., NeurIPS 2010, not checked against their code): here the residuals are those of clients, and
    a channel is a row of the layer, one output unit. The weights are w_ki = p_k / max(||row i of
    D_k||, eps), D_k the product's distance to client k. With all rows of a client in one norm this
    would be `GeometricMedian`; with rows of their own a client can be left out of some rows alone.

    Clients hold one A, so with A A^T = C C^T the norms are those of rows of (B_k - B) C, and row i of
    the result is a convex combination of the clients' rows b_ki, with A as it was. Every row
    tolerates clients of up to half the weight. The head's matrices go by rows too, a vector as one
    row. `tolerance` sets eps: this share of a row's median distance between clients.
    """

    broadcasts: ClassVar[tuple[str, ...]] = ("B",)
    needs_equal_A: ClassVar[bool] = True
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(self, tolerance: float = 1e-6) -> None:
        check_tolerance(tolerance)
        self.tolerance = tolerance

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the state whose rows of B, and of the head, are the clients' medians."""
        new = {}
        for layer, pair in state.factors.items():
            C = root_of_gram(pair.A)
            sent = [u.state.factors[layer].B for u in updates]
            new[f"{layer}.B"] = self._median(pair.B, sent, updates, C)
        for name, old in state.extra.items():
            new[name] = self._median(old, [u.state.extra[name] for u in updates], updates)
        return state.update(new)

    def _median(
        self,
        old: Tensor,
        sent: Sequence[Tensor],
        updates: Sequence[Update],
        C: Tensor | None = None,
    ) -> Tensor:
        """Return the tensor whose rows, or the rows times C, are medians of those that were sent."""
        p = torch.tensor([u.weight for u in updates], dtype=torch.float64, device=old.device)
        moved = torch.stack([x.double() - old.double() for x in sent])
        rows = moved.flatten(2) if old.ndim > 1 else moved[:, None]
        w = row_medians(rows if C is None else rows @ C, p, self.tolerance)
        step = (w[..., None] * rows).sum(0).view(old.shape)
        return (old.double() + step).to(old.dtype)
