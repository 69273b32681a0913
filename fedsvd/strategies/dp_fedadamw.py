"""DP-FedAdamW: AdamW at the clients, corrected for the noise; the server averages second moments."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import Tensor

from fedsvd.client.block_adamw import MOVE, SECOND, STEPS
from fedsvd.client.rule import LocalRule
from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.pair import MEMORY
from fedsvd.strategies.base import Strategy, Update, weighted_mean
from fedsvd.strategies.checks import check_beta


@final
class DpFedAdamW(Strategy):
    """Clients take AdamW's steps on clipped and noised gradients; the server averages A, B and v-bar.

    DP-FedAdamW (Liu et al., CVPR 2026, arXiv 2602.19945; read in secondary sources, the released code
    lacks the correction and the block means). The step is `fedsvd.client.block_adamw.BlockAdamW`:
    denominator sqrt(v^ - (sigma C / b)^2) + tau, v starting from the mean v-bar of the clients' last
    block means, and a pull `gamma` along the last global move. A block is a tensor: a layer's A, its
    B, the head's weight or bias. Weights of all means are p_k (the paper's are 1 / K).

    Every example's gradient is clipped; the released code clips the batch's, at a norm taken from
    private data. Where v^ - (sigma C / b)^2 is below (floor sigma C / b)^2 that takes its place:
    the difference is often negative, and the sources read here do not say what happens then.

    v-bar and the steps behind it come from clients as tensors of memory, one number each; they and
    the last move are in the state's memory and are sent with every round.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    needs: ClassVar[tuple[str, ...]] = ()

    def __init__(
        self,
        gamma: float = 0.5,
        floor: float = 0.1,
        beta1: float = 0.9,
        beta2: float = 0.999,
        tau: float = 1e-8,
    ) -> None:
        for key, value in (("gamma", gamma), ("floor", floor)):
            if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
                raise wrong(f"strategy.{key}", value, "a number of at least 0")
        for key, beta in (("beta1", beta1), ("beta2", beta2)):
            check_beta(f"strategy.{key}", beta)
        if not isinstance(tau, (int, float)) or not 0 < tau < float("inf"):
            raise wrong("strategy.tau", tau, "a number above 0")
        self.local = LocalRule(
            steps="block_adamw", gamma=gamma, floor=floor, beta1=beta1, beta2=beta2, tau=tau
        )

    def tells(self, state: AdapterState) -> dict[str, Tensor]:
        """Return v-bar, the steps behind it and the last global move; nothing before round 1."""
        ours = (SECOND, MOVE, STEPS)
        return {f"{MEMORY}{n}": t for n, t in state.memory.items() if n.startswith(ours)}

    def asks(self, trained: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Return the clients' block means of v and the steps behind them: a number each."""
        zeros = {f"{MEMORY}{SECOND}{n}": t.new_zeros(()) for n, t in trained.items()}
        like = next(iter(trained.values()))
        return {**zeros, f"{MEMORY}{STEPS}": like.new_zeros(())}

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted means of A, B, head, v-bar and steps, and the move that this makes."""
        bare = replace(state, memory={})
        new = weighted_mean(bare, [replace(u, state=replace(u.state, memory={})) for u in updates])
        before, after = bare.tensors(), new.tensors()
        memory = dict(state.memory)
        for name in updates[0].state.memory:
            if name.startswith((SECOND, STEPS)):
                values = [u.weight * u.state.memory[name].double() for u in updates]
                memory[name] = torch.stack(values).sum(dim=0).to(updates[0].state.memory[name])
        for name, x in before.items():
            if f"{SECOND}{name}" in memory:
                memory[f"{MOVE}{name}"] = (after[name].double() - x.double()).to(x.dtype)
        return replace(new, memory=memory)
