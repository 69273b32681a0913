"""What a rival of a method with public texts could do with them: train on them."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch

from fedsvd.lowrank import AdapterState, LowRank, refactorise
from fedsvd.strategies import FedSVD, Strategy, Update


@final
class PublicStart(Strategy):
    """FedSVD from factors that were trained on the public texts, which nothing protects.

    Before round 1 the server takes `steps` steps of Adam at rate `lr`, falling to 0, on A and B with
    all of data.public and their labels; it keeps the adapter's A if `steps` is 0. Then it is FedSVD.
    The accuracy at round 0 is that of training on the public texts alone.
    """

    mean_only: ClassVar[bool] = True
    needs_public = True
    exact = True

    def __init__(self, steps: int = 50, lr: float = 0.003) -> None:
        self.steps, self.lr, self._rule = steps, lr, FedSVD()

    def begin(self, state: AdapterState) -> AdapterState:
        """Return the state with trained factors, refactorised."""
        assert self.public is not None
        scale = 1.0  # alpha = rank
        x = {n: [p.A.clone(), p.B.clone()] for n, p in state.factors.items()}
        optimizer = torch.optim.Adam([t for pair in x.values() for t in pair], lr=self.lr)
        fall = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / self.steps)
        for _ in range(self.steps):
            now = replace(state, factors={n: LowRank(A, B) for n, (A, B) in x.items()})
            for name, G in self.public.weight_gradients(now).items():
                A, B = x[name]
                A.grad, B.grad = scale * (B.mT @ G.to(B)), scale * (G.to(A) @ A.mT)
            optimizer.step()
            fall.step()
        return refactorise(replace(state, factors={n: LowRank(A, B) for n, (A, B) in x.items()}))

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return FedSVD's step."""
        return self._rule.aggregate(state, updates)
