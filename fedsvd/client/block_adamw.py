"""AdamW whose second moments travel as one number a tensor, corrected for the noise's variance."""

from collections.abc import Mapping
from typing import Any, final

import torch
from torch import Tensor, nn

from fedsvd.client.rule import LocalRule
from fedsvd.lowrank.pair import MEMORY

SECOND, MOVE, STEPS = "adam.v.", "adam.move.", "adam.steps"  # in a state's memory


@final
class BlockAdamW(torch.optim.Optimizer):
    """DP-FedAdamW's local step (Liu et al., CVPR 2026, arXiv 2602.19945).

    m starts a round at 0, v of a tensor at the number v-bar that the server sent for all its
    entries. With the noised gradient g, k the local step and t all steps before it and it:
    m = beta1 m + (1 - beta1) g, v = beta2 v + (1 - beta2) g^2, m^ = m / (1 - beta1^k),
    v^ = v / (1 - beta2^t), s = sigma C / b the noise's standard deviation, and
    w -= lr (m^ / (sqrt(max(v^ - s^2, (floor s)^2)) + tau) + decay w), w += pull D / K,
    where D is the last move of the global model and K the steps of a round: the paper's
    - lr gamma Delta_G with Delta_G = - D / (K lr), so `pull` is gamma times this round's rate over
    the last one's. It looks at the noised gradient and at what was sent: post-processing.
    """

    def __init__(
        self, named: Mapping[str, nn.Parameter], lr: float, decay: float, rule: LocalRule,
        noise: float, memory: Mapping[str, Tensor], pull: float, steps: int,
    ) -> None:  # fmt: skip
        super().__init__(list(named.values()), {"lr": lr})
        self._named, self._lr, self._decay, self._rule = dict(named), lr, decay, rule
        self._noise, self._local = noise, 0
        self._before = round(float(memory[STEPS])) if STEPS in memory else 0
        self._m = {n: torch.zeros_like(p, dtype=torch.float64) for n, p in named.items()}
        start = {n: float(memory.get(f"{SECOND}{n}", torch.zeros(()))) for n in named}
        self._v = {
            n: torch.full_like(p, max(start[n], 0.0), dtype=torch.float64) for n, p in named.items()
        }
        self._pull = {
            n: pull / steps * memory[f"{MOVE}{n}"].double() for n in named if f"{MOVE}{n}" in memory
        }

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Take a step along what `grad` holds: the noised mean of clipped gradients."""
        self._local += 1
        one, two, square = self._rule.beta1, self._rule.beta2, self._noise**2
        t = self._before + self._local
        for name, p in self._named.items():
            if p.grad is None:
                continue
            g = p.grad.double()
            m = self._m[name] = one * self._m[name] + (1 - one) * g
            v = self._v[name] = two * self._v[name] + (1 - two) * g * g
            own = (v / (1 - two**t) - square).clamp(min=self._rule.floor**2 * square)
            step = m / (1 - one**self._local) / (own.sqrt() + self._rule.tau)
            new = p.double() - self._lr * (step + self._decay * p.double())
            p.copy_(new + self._pull[name] if name in self._pull else new)

    def moments(self) -> dict[str, Tensor]:
        """Return what the server averages: the mean of each v, and the steps behind them."""
        found = {
            f"{MEMORY}{SECOND}{n}": v.mean().to(self._named[n].dtype) for n, v in self._v.items()
        }
        like = next(iter(self._named.values()))
        steps = torch.tensor(float(self._before + self._local), dtype=like.dtype)
        return {**found, f"{MEMORY}{STEPS}": steps.to(like.device)}
