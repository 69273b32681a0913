"""Server optimisers: the mean of the clients as a gradient to follow, not as the next state."""

from dataclasses import dataclass, replace

import torch

from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.grassmann import SUBSPACES
from fedsvd.lowrank.pair import MEMORY
from fedsvd.strategies.checks import check_beta
from fedsvd.strategies.mfac import mfac_step

NAMES = ("adam", "mfac", "momentum", "yogi")


@dataclass(frozen=True)
class ServerOptimizer:
    """A step from the old state x along the pseudo-gradient D = mean - x of every averaged tensor.

    - momentum (FedAvgM; Hsu, Qi, Brown, 2019, arXiv 1909.06335): m = beta1 m + D, x += lr m.
    - adam, yogi (Reddi et al., ICLR 2021, arXiv 2003.00295, algorithm 2): m = beta1 m + (1 - beta1)
      D; v = beta2 v + (1 - beta2) D^2, or v - (1 - beta2) D^2 sign(v - D^2);
      x += lr m / (sqrt v + tau). m starts at 0 and v at tau^2.
    - mfac (`fedsvd.strategies.mfac.mfac_step`): x += lr F^-1 D. F is the empirical Fisher matrix of
      the last rounds' D, damped. beta1 is the momentum of the product.

    Factors move as they are, so B A does not follow its mean. What is remembered (m, v, the window)
    is in the state's memory. It stays at the server and is checkpointed with the state.

    Attributes:
        name: "momentum", "adam", "yogi" or "mfac".
        lr: the server's learning rate, above 0.
        beta1: the momentum.
        beta2: the decay of v.
        tau: the constant beside sqrt v.
        window: the number of rounds that mfac remembers.
        damping: lambda of mfac's F.
    """

    name: str
    lr: float
    beta1: float = 0.9
    beta2: float = 0.99
    tau: float = 1e-3
    window: int = 32
    damping: float = 1e-5

    def __post_init__(self) -> None:
        if self.name not in NAMES:
            raise one_of("strategy.server.name", self.name, NAMES)
        if type(self.window) is not int or self.window < 1:
            raise wrong("strategy.server.window", self.window, "a whole number of at least 1")
        for key in ("lr", "tau", "damping"):
            value = getattr(self, key)
            if not isinstance(value, (int, float)) or not 0 < value < float("inf"):
                raise wrong(f"strategy.server.{key}", value, "a number above 0")
        for key in ("beta1", "beta2"):
            check_beta(f"strategy.server.{key}", getattr(self, key))

    def step(self, old: AdapterState, mean: AdapterState) -> AdapterState:
        """Return `mean` with every tensor that it does not share with `old` replaced by the step."""
        if self.name == "mfac":
            return mfac_step(old, mean, self.lr, self.beta1, self.window, self.damping)
        before, new = old.tensors(), {}
        for name, value in mean.select(("A", "B", "extra")).items():
            x = before[name]
            if value is x or name == SUBSPACES:  # of which there is no difference to follow
                continue
            delta = value.double() - x.double()
            m = old.memory[f"m.{name}"].double() if f"m.{name}" in old.memory else 0 * delta
            if self.name == "momentum":
                m = self.beta1 * m + delta
                move = m
            else:
                m = self.beta1 * m + (1 - self.beta1) * delta
                start = torch.full_like(delta, self.tau**2)
                v = old.memory[f"v.{name}"].double() if f"v.{name}" in old.memory else start
                square = delta.square()
                if self.name == "adam":
                    v = self.beta2 * v + (1 - self.beta2) * square
                else:
                    v = v - (1 - self.beta2) * square * (v - square).sign()
                move = m / (v.sqrt() + self.tau)
                new[f"{MEMORY}v.{name}"] = v.to(x.dtype)
            new[f"{MEMORY}m.{name}"] = m.to(x.dtype)
            new[name] = (x.double() + self.lr * move).to(x.dtype)
        # What the rule itself remembers is in `mean`, and stays.
        return replace(mean, memory={**old.memory, **mean.memory}).update(new)
