"""Steps of B A itself: gradients in coordinates of the tangent space, and the way back to rank r.

**Sensitivity.** Before a step every example's gradients (g_A, g_B) of each layer become coordinates
(S, T) by a linear map (`fedsvd.lowrank.tangent.coordinates`) that follows from A and B at the
step's beginning. Those are what the server sent, moved by noised steps: public. What is clipped is
the vector of all coordinates, with the head's gradient, as the optimiser holds it: an example moves
their sum by at most the clip C in the Euclidean norm, whatever the map is and however it was rounded.
Noise N(0, sigma^2 C^2) is added to each of these numbers, so the step is the Gaussian mechanism with
multiplier sigma as ever. What follows looks at the noised sum, A and B alone. That the coordinates'
norm is the Frobenius norm of the projected gradient, and that their noise is isotropic in the tangent
space once S is made orthogonal to V, is what PRISM asks for; the guarantee does not rest on it.
"""

from collections.abc import Mapping, Sequence
from typing import Any, final

import torch
from torch import Tensor, nn

from fedsvd.client.rule import LocalRule
from fedsvd.lowrank import LowRank
from fedsvd.lowrank.pair import kind_of
from fedsvd.lowrank.tangent import Frame, across, along, coordinates, frame, lift, retract, stepped
from fedsvd.settings import TrainingSettings

EPSILON, MOST_CONDITION = 1e-8, 1e4  # of the preconditioners; the released code's


@final
class TangentStep(torch.optim.Optimizer):
    """PRISM's step (Wang, Zhang, ICML 2026, arXiv 2606.00944) on pairs; SGD or AdamW on the rest.

    With `training.optimizer` sgd, Z = B A becomes Retr(Z - lr P), P the noised projection; with adamw
    the direction is the paper's adaptive one: first moments m of the least lifts dA and dB,
    second ones V_A = E[dA dA^T] / d_in and V_B = E[dB^T dB] / d_out (r x r), both with Adam's
    correction, and u_A = V_A^-1/2 m_A, u_B = m_B V_B^-1/2; the eigenvalues of V are at least `floor`
    times the noise's own and 1e-4 times the largest. Weight decay shrinks Z by 1 - lr decay.
    `noise` is the standard deviation sigma C / b of each coordinate.
    """

    def __init__(
        self, named: Mapping[str, nn.Parameter], training: TrainingSettings, lr: float,
        rule: LocalRule, noise: float,
    ) -> None:  # fmt: skip
        layers = [n[:-2] for n in named if kind_of(n) == "A" and f"{n[:-1]}B" in named]
        self._pairs = {n: (named[f"{n}.A"], named[f"{n}.B"]) for n in layers}
        inside = {id(p) for pair in self._pairs.values() for p in pair}
        if any(kind_of(n) in ("A", "B") and id(p) not in inside for n, p in named.items()):
            raise ValueError("a tangent step needs both factors of every layer to train")
        super().__init__(list(named.values()), {"lr": lr})
        self._place = {id(p): i for i, p in enumerate(named.values())}
        self._lr, self._decay, self._rule, self._noise = lr, training.weight_decay, rule, noise
        self._adaptive = training.optimizer == "adamw"
        rest = [p for p in named.values() if id(p) not in inside]
        kind = torch.optim.AdamW if self._adaptive else torch.optim.SGD
        self._rest = kind(rest, lr=lr, weight_decay=self._decay) if rest else None
        self._moments: dict[str, tuple[Tensor, Tensor]] = {}  # of "layer.A", "layer.B": m and V
        self._steps = 0
        self._frames = self._at()

    def _at(self) -> dict[str, Frame]:
        return {n: frame(LowRank(A.detach(), B.detach())) for n, (A, B) in self._pairs.items()}

    @torch.no_grad()
    def coordinates(self, gradients: Sequence[Tensor]) -> list[Tensor]:
        """Return gradients (n, *shape), one for each parameter in their order, as coordinates."""
        if len(gradients) != len(self._place):
            raise ValueError("some of the factors do not train in this step")
        found = list(gradients)
        for layer, (A, B) in self._pairs.items():
            a, b = self._place[id(A)], self._place[id(B)]
            found[a], found[b] = coordinates(self._frames[layer], found[a], found[b])
        return found

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step along what the factors' `grad` holds: the noised mean of coordinates."""
        self._steps += 1
        moved, before = {}, {}
        for layer, (A, B) in self._pairs.items():
            assert A.grad is not None
            assert B.grad is not None
            at, pair = self._frames[layer], LowRank(A.detach(), B.detach())
            S, T = across(at, A.grad.double()), B.grad.double()
            keep = 1 - self._lr * self._decay
            if self._adaptive:
                u_A, u_B = self._direction(layer, pair, *lift(pair, at, S, T))
                moved[layer] = stepped(pair, -self._lr * u_A, -self._lr * u_B, keep)
            else:
                moved[layer] = along(pair, at, -self._lr * S, -self._lr * T, keep)
            before[layer] = pair
        for layer, pair in retract(moved, before).items():
            A, B = self._pairs[layer]
            A.copy_(pair.A)
            B.copy_(pair.B)
        self._frames = self._at()
        if self._rest is not None:
            self._rest.step()

    def _direction(
        self, layer: str, pair: LowRank, dA: Tensor, dB: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Return the adaptive directions u_A (r, d_in) and u_B (d_out, r) of a layer."""
        A, B, square = pair.A.double(), pair.B.double(), self._noise**2
        r, d_in, d_out = pair.rank, A.shape[1], B.shape[0]
        # What isotropic noise adds to V: of dB = T V^T A^+ up to the lift, and of dA likewise.
        spread_B = torch.linalg.pinv(A @ A.mT, hermitian=True).trace() / r * (d_out - r) / d_out
        spread_A = torch.linalg.pinv(B.mT @ B, hermitian=True).trace() / r
        floors = [self._rule.floor * square * max(1.0, float(x)) for x in (spread_A, spread_B)]
        u_A = self._preconditioned(f"{layer}.A", dA.mT, floors[0], d_in).mT
        return u_A, self._preconditioned(f"{layer}.B", dB, floors[1], d_out)

    def _preconditioned(self, name: str, d: Tensor, floor: float, size: int) -> Tensor:
        """Return m V^-1/2 (size, r) after the gradient d (size, r) has entered both moments."""
        one, two = self._rule.beta1, self._rule.beta2
        m, V = self._moments.get(name, (torch.zeros_like(d), d.new_zeros(d.shape[1], d.shape[1])))
        m, V = one * m + (1 - one) * d, two * V + (1 - two) * (d.mT @ d) / size
        self._moments[name] = (m, V)
        values, vectors = torch.linalg.eigh(V / (1 - two**self._steps))
        values = (values.clamp(min=0) + EPSILON).clamp(min=floor)
        values = values.clamp(min=float(values.max()) / MOST_CONDITION)
        return m / (1 - one**self._steps) @ (vectors * values.rsqrt()) @ vectors.mT
