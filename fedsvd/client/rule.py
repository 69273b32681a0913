"""What a strategy asks of local training beyond which factors train."""

import math
from collections.abc import Mapping
from dataclasses import dataclass, fields
from types import MappingProxyType
from typing import Any

import torch
from torch import Tensor

from fedsvd.client.filters import binomial, projected, smooth
from fedsvd.lowrank.pair import kind_of

PREFIX = "local-"
STEPS = ("plain", "tangent", "block_adamw")
PROXIMAL = "proximal-mu"  # Flower's name in the message of FedProx


@dataclass(frozen=True)
class LocalRule:
    """How clients train; the default is plain steps on everything that trains.

    Nothing here uses data. Under privacy all of it acts after the noise, or follows from what the
    client was sent. `fedsvd.client.components` describes the last three attributes.

    Attributes:
        alternates: the odd steps of a round train B, the even ones A, and all steps the head.
        binomial: the gradients of A and B pass the filter [1, 4, 6, 4, 1] / 16 along the model's
            axis.
        smoothing: the standard deviation, in entries, of a Gaussian filter in place of that filter;
            0 filters nothing.
        projected: the gradients become those of the weight, projected on what the other factor spans.
        rate_A: the rate of A, as a multiple of the run's.
        rate_B: the rate of B, as a multiple of the run's.
        penalty: lambda of the penalty lambda sum ||B[:, t:]||_F ||A[t:]||_F over the layers, which is
            added to the loss; t = floor(tail r).
        tail: the share of components that the penalty leaves alone.
        proximal_mu: mu of mu / 2 ||w - w_t||^2, added to the loss, over all that trains. w_t is what
            the client starts the round from (FedProx; Li et al., MLSys 2020, arXiv 1812.06127,
            equation 2).
        steps: "plain", those of `training.optimizer`; "tangent", those of PRISM, for which each
            example's gradient is projected before it is clipped; "block_adamw", those of DP-FedAdamW.
        beta1: the decay of the first moments of the last two.
        beta2: the decay of their second moments.
        floor: the least value of their denominators, in units of the noise.
        gamma: DP-FedAdamW's pull.
        tau: the constant in DP-FedAdamW's denominator.
        budget: the first steps find the budget * N rank components, of all N layers, that matter
            most. Only those move in the steps that follow. A client with a rank of its own has that
            rank as its budget. 0 selects nothing.
        probe: the share of the steps that look for these components.
        folds: the key of a stream, above 0. From it a client with a rank of its own draws the
            components that it trains. It folds the others into its frozen weights. With 0 it takes
            the first ones, and what the others hold is missing.
    """

    alternates: bool = False
    binomial: bool = False
    smoothing: float = 0.0
    projected: bool = False
    rate_A: float = 1.0
    rate_B: float = 1.0
    penalty: float = 0.0
    tail: float = 1.0
    proximal_mu: float = 0.0
    steps: str = "plain"
    beta1: float = 0.9
    beta2: float = 0.999
    floor: float = 1.0
    gamma: float = 0.0
    tau: float = 1e-8
    budget: int = 0
    probe: float = 0.0
    folds: int = 0

    def to_config(self) -> dict[str, bool | float | str]:
        """Return the entries of a round's message that carry the rule to the clients."""
        return {PREFIX + f.name: getattr(self, f.name) for f in fields(self)}

    def kinds(self, step: int, trains: tuple[str, ...]) -> tuple[str, ...]:
        """Return which of `trains` train in a step (from 1)."""
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
    others: Mapping[str, Tensor] = MappingProxyType({}),
    scales: Mapping[str, float] = MappingProxyType({}),
) -> None:
    """Filter and add to the gradients of what trains, in place, by name as in a state.

    `start` is what the round started from, by the same names; only `proximal_mu` looks at it.
    `others` are all factors, also those that do not train now, and `scales` the layers' alpha / r;
    only `projected` looks at these. The filter works along the model's axis and the projection along
    the rank's, so that their order does not matter.
    """
    for name, p in named.items():
        kind = kind_of(name)
        if p.grad is None or kind not in ("A", "B"):
            continue
        along = 1 if kind == "A" else 0
        if rule.binomial:
            p.grad = binomial(p.grad, along)
        elif rule.smoothing > 0:
            p.grad = smooth(p.grad, rule.smoothing, along)
        if rule.projected:
            other = others[f"{name[:-1]}{'B' if kind == 'A' else 'A'}"]
            p.grad = projected(p.grad, other, kind, scales[name[:-2]])
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
