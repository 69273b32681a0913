"""What a strategy asks of local training beyond which factors train."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, fields
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional as F

from fedsvd.lowrank.pair import kind_of

PREFIX = "local-"
PROXIMAL = "proximal-mu"  # Flower's name in the message of FedProx


@dataclass(frozen=True)
class LocalRule:
    """How clients train; the default is plain steps on everything that trains.

    alternates: the odd steps of a round train B, the even ones A (and the head in all).
    smoothing: standard deviation, in entries, of a Gaussian filter along the model's axis of the
    gradients of A and B; 0 filters nothing. penalty and tail: lambda and gamma of
    lambda sum ||B[:, t:]||_F ||A[t:]||_F over the layers with t = floor(gamma r), added to the loss.
    proximal_mu: mu of mu / 2 ||w - w_t||^2, added to the loss, over all that trains; w_t is what the
    client starts the round from (FedProx; Li et al., MLSys 2020, arXiv 1812.06127, equation 2).
    budget and probe: the first `probe` of the steps find the budget * N rank components, of all N
    layers, that matter most, and only those move in the steps that follow; of a client with a rank of
    its own, that rank is its budget. 0 selects nothing. See `fedsvd.client.components.Selection`.
    folds: the key of a stream, above 0, from which the components are drawn that a client with a rank
    of its own trains; the others are folded into its frozen weights. 0: it takes the first ones, and
    what the others hold is missing.
    None looks at data: under privacy all of it acts after the noise.
    """

    alternates: bool = False
    smoothing: float = 0.0
    penalty: float = 0.0
    tail: float = 1.0
    proximal_mu: float = 0.0
    budget: int = 0
    probe: float = 0.0
    folds: int = 0

    def to_config(self) -> dict[str, bool | float]:
        """Return the entries of a round's message that tell the clients."""
        return {PREFIX + name: value for name, value in asdict(self).items()}

    def kinds(self, step: int, trains: tuple[str, ...]) -> tuple[str, ...]:
        """Return which of `trains` do so in a step (from 1)."""
        if not self.alternates or len(trains) < 2:
            return trains
        return ("B",) if step % 2 else ("A",)


def rule_in(config: Mapping[str, Any]) -> LocalRule:
    """Return the rule that a round's message carries; the default if it carries none.

    Flower's FedProx says its mu by a name of its own.
    """
    known = {
        f.name: config[PREFIX + f.name] for f in fields(LocalRule) if PREFIX + f.name in config
    }
    if PROXIMAL in config:
        known.setdefault("proximal_mu", float(config[PROXIMAL]))
    return LocalRule(**known)


@torch.no_grad()
def apply_rule(
    rule: LocalRule,
    named: Mapping[str, torch.nn.Parameter],
    start: Mapping[str, Tensor] = MappingProxyType({}),
) -> None:
    """Filter and add to the gradients of what trains, in place, by name as in a state.

    `start` is what the round started from, by the same names; only `proximal_mu` looks at it.
    """
    if rule.smoothing > 0:
        for name, p in named.items():
            if p.grad is not None and kind_of(name) in ("A", "B"):
                along = 1 if kind_of(name) == "A" else 0
                p.grad = smooth(p.grad, rule.smoothing, along)
    if rule.penalty > 0:
        for name, A in named.items():
            B = named.get(f"{name[:-1]}B")
            if kind_of(name) == "A" and B is not None and A.grad is not None and B.grad is not None:
                t = tail_start(rule.tail, A.shape[0])
                norm_A, norm_B = A[t:].norm(), B[:, t:].norm()
                if norm_A > 0 and norm_B > 0:
                    A.grad[t:] += rule.penalty * norm_B / norm_A * A[t:]
                    B.grad[:, t:] += rule.penalty * norm_A / norm_B * B[:, t:]
    if rule.proximal_mu > 0:
        for name, p in named.items():
            if p.grad is not None:
                p.grad += rule.proximal_mu * (p - start[name])


def tail_start(gamma: float, rank: int) -> int:
    """Return floor(gamma r), at least 1: where the tail of the rank components begins."""
    return max(1, math.floor(gamma * rank))


def smooth(x: Tensor, std: float, dim: int) -> Tensor:
    """Return a matrix convolved along `dim` with a Gaussian of `std` entries, cut at 3 std.

    The kernel sums to 1 and the ends are repeated, so that a constant stays what it is.
    """
    radius = max(1, math.ceil(3 * std))
    at = torch.arange(-radius, radius + 1, dtype=x.dtype, device=x.device)
    kernel = torch.exp(-0.5 * (at / std) ** 2)
    rows = x if dim == 1 else x.mT
    padded = F.pad(rows.unsqueeze(1), (radius, radius), mode="replicate")
    smoothed = F.conv1d(padded, (kernel / kernel.sum()).view(1, 1, -1)).squeeze(1)
    return smoothed if dim == 1 else smoothed.mT.contiguous()
