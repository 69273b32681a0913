"""Which rank components of its factors a client trains: drawn at random, or by what they move."""

from collections.abc import Mapping
from dataclasses import replace

import torch
from torch import Tensor

from fedsvd.lowrank.pair import AdapterState, LowRank, kind_of
from fedsvd.randomness import Purpose, torch_stream


def drawn(key: int, round: int, client: int, number: int, rank: int) -> Tensor:
    """Return `number` of the components 0 to rank - 1, ascending, uniform without replacement.

    They are from the stream (key, "subspace", round, client), so that server and client draw alike.
    """
    generator = torch_stream(key, Purpose.SUBSPACE, round, client)
    return torch.randperm(rank, generator=generator)[:number].sort().values


def fold(state: AdapterState, key: int, client: int, number: int) -> AdapterState:
    """Return `state` with the drawn components of every layer, and the others in its frozen weight.

    A becomes A[K], B becomes B[:, K], and W grows by the product of what is left, so W + B A stays. A
    layer whose rank is at most `number` keeps all.
    """
    factors, base = dict(state.factors), dict(state.base)
    for layer, pair in state.factors.items():
        if pair.rank <= number:
            continue
        at = drawn(key, state.round, client, number, pair.rank).to(pair.A.device)
        left = torch.ones(pair.rank, dtype=torch.bool, device=pair.A.device)
        left[at] = False
        rest = pair.B[:, left] @ pair.A[left]
        base[layer] = base[layer] + rest if layer in base else rest
        factors[layer] = LowRank(pair.A[at], pair.B[:, at])
    return replace(state, factors=factors, base=base)


class Selection:
    """LoRA-A2's rank selection, of one client in one round.

    The first steps of the round find the components that move the layers' products most; then all
    goes back to where it began, and in the steps that follow only those components move. `start`
    holds every layer's A and B, and what trains beside them, as the round begins; `named` is what
    trains.
    """

    def __init__(
        self, budget: int, probe: float, steps: int,
        start: Mapping[str, Tensor], named: Mapping[str, Tensor],
    ) -> None:  # fmt: skip
        self.budget, self.start, self.named = budget, dict(start), dict(named)
        self.probing = min(steps - 1, max(1, round(probe * steps)))
        self.kept: dict[str, Tensor] = {}  # by layer: which components move, once it is known

    @torch.no_grad()
    def after(self, step: int, optimizer: torch.optim.Optimizer) -> None:
        """Do what is due after a step (from 1) of the optimiser."""
        if step == self.probing:
            self.kept = most_important(importance(self.start, self.named), self.budget)
            for name, p in self.named.items():
                p.copy_(self.start[name])
            optimizer.state.clear()  # what it remembers is of the way that was undone
        elif step > self.probing:
            for name, p in self.named.items():
                if kind_of(name) in ("A", "B"):
                    kept = self.kept[name[:-2]]
                    moves = kept.unsqueeze(1) if kind_of(name) == "A" else kept
                    p.copy_(torch.where(moves, p, self.start[name]))


def importance(start: Mapping[str, Tensor], now: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return the scores (r,), float64, of every layer's components (LoRA-A2, equation 4).

    Where B trains, the score of component i is ||dB[:, i] A[i]||_F, and where A does,
    ||B[:, i] dA[i]||_F; of a product of a column and a row, the product of their norms.
    """
    scores: dict[str, Tensor] = {}
    for name, value in now.items():
        if kind_of(name) not in ("A", "B"):
            continue
        layer, kind = name[:-2], kind_of(name)
        other = start[f"{layer}.{'A' if kind == 'B' else 'B'}"]
        across = {"A": 1, "B": 0}
        moved = (value.double() - start[name].double()).norm(dim=across[kind])
        score = moved * other.double().norm(dim=across["A" if kind == "B" else "B"])
        scores[layer] = scores[layer] + score if layer in scores else score
    return scores


def most_important(scores: Mapping[str, Tensor], budget: int) -> dict[str, Tensor]:
    """Return by layer which components are among the budget * N highest scores of all N layers.

    Of equal scores the earlier layer's and component's comes first.
    """
    if not scores:
        return {}
    every = torch.cat(list(scores.values()))
    chosen = torch.zeros(len(every), dtype=torch.bool, device=every.device)
    chosen[torch.argsort(every, descending=True, stable=True)[: budget * len(scores)]] = True
    return dict(zip(scores, chosen.split([len(s) for s in scores.values()]), strict=True))
