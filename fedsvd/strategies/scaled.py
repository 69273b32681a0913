"""Learned scaling: how far to follow each client in each tensor, fitted on public texts."""

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor

from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState
from fedsvd.strategies.base import Strategy, Update


@final
class Scaled(Strategy):
    """x + sum_k c_tk (x_tk - x_t) in every tensor t, with coefficients c that lower a public loss.

    Anisotropic scaling of task vectors (aTLAS; Zhang et al., NeurIPS 2024, arXiv 2407.02880) with the
    clients' updates as task vectors. The coefficients start at the weights p_k and take `steps` steps
    of Adam at rate `lr`; those of the lowest public loss seen are used. The gradient in c_tk is the
    inner product of the loss's gradient in tensor t with client k's update of it. Public texts and
    released updates are all it uses: post-processing.
    """

    needs: ClassVar[tuple[str, ...]] = ()
    needs_public = True
    weighted = False
    idempotent = False

    def __init__(self, steps: int = 5, lr: float = 0.1) -> None:
        if steps < 1:
            raise wrong("strategy.steps", steps, "a whole number of at least 1")
        if not 0 < lr < float("inf"):
            raise wrong("strategy.lr", lr, "a number above 0")
        self.steps, self.lr = steps, lr

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the state moved by the scaled updates."""
        assert self.public is not None
        before, sent = state.tensors(), [u.state.tensors() for u in updates]
        deltas = {
            name: torch.stack([t[name].double() - x.double() for t in sent])
            for name, x in state.select(("A", "B", "extra")).items()
            if not all(t[name] is x for t in sent)
        }
        if not deltas:
            return state
        p = torch.tensor([u.weight for u in updates], dtype=torch.float64, device=self.device)
        # Only ever seen through their gradients: the loss is a function of the state.
        c = {name: p.clone().requires_grad_() for name in deltas}
        optimizer = torch.optim.Adam(list(c.values()), lr=self.lr)
        lowest, best = float("inf"), state
        for step in range(self.steps + 1):
            new = {n: _moved(before[n], c[n].detach(), d) for n, d in deltas.items()}
            candidate = state.update(new)
            loss, gradients = self.public.gradients(candidate)
            if loss < lowest:
                lowest, best = loss, candidate
            if step < self.steps:
                for name, d in deltas.items():
                    c[name].grad = d.flatten(1) @ gradients[name].double().flatten()
                optimizer.step()
        return best


def _moved(x: Tensor, coefficients: Tensor, deltas: Tensor) -> Tensor:
    """Return x + sum_k c_k delta_k in the dtype of x."""
    return (x.double() + torch.tensordot(coefficients, deltas, dims=1)).to(x.dtype)
