"""What a rule claims not to depend on: a client's basis, the scale between A and B, the weights."""

from collections.abc import Iterator
from dataclasses import replace
from typing import Any

import torch
from torch import Tensor

from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.strategies.base import Strategy, Update
from fedsvd.testing.cases import (
    ROUND,
    TOLERANCE,
    WEIGHTS,
    distance,
    make_rule,
    make_updates,
    sent,
    start_of,
    total,
)

ROUNDS = (1, 2, 3, ROUND, ROUND + 1)
TIMES = 3.0  # A, and one over it B


def any_basis(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    """From round `any_basis` on a client may send (Q^T A, B Q) for (A, B); before, that matters."""
    for number, rule, state, updates in _rounds(cls, options):
        if rule.any_basis is None:
            return
        kinds = {key.rpartition(".")[2] for key in sent(rule, state)}
        assert {"A", "B"} <= kinds, f"{name} declares any_basis, but clients do not send A and B."
        g = torch.Generator().manual_seed(3)
        others = [replace(u, state=_in_other_basis(u.state, g)) for u in updates]
        there = rule.aggregate(state, updates)
        here = make_rule(cls, options).aggregate(state, others)
        same = distance(here, there) < TOLERANCE
        if number < rule.any_basis:
            assert not same, (
                f"{name} declares any_basis = {rule.any_basis}, but in round {number} already the "
                "basis that a client's factors are in does not matter: something is turned."
            )
        else:
            assert same, (
                f"{name} declares any_basis = {rule.any_basis}, but in round {number} the basis that "
                "a client's factors are in matters."
            )


def any_scale(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    """Nothing is decided by how much of B A's size is A's."""
    for number, rule, state, updates in _rounds(cls, options):
        if not rule.any_scale:
            return
        others = [replace(u, state=_rescaled(u.state)) for u in updates]
        there = rule.aggregate(state, updates)
        here = make_rule(cls, options).aggregate(_rescaled(state), others)
        assert distance(here, there) < TOLERANCE, (
            f"{name} declares any_scale = True, but in round {number} W + B A is another where every "
            "A is larger and every B smaller by one number."
        )


def weightless(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    """The clients' weights do not enter the factors."""
    for number, rule, state, updates in _rounds(cls, options):
        if not rule.weightless:
            return
        others = [Update(u.client, w, u.state) for u, w in zip(updates, WEIGHTS[::-1], strict=True)]
        there = rule.aggregate(state, updates)
        here = make_rule(cls, options).aggregate(state, others)
        for layer in there.factors:
            found = total(here, layer) - total(there, layer)
            assert float(found.norm() / total(there, layer).norm()) < TOLERANCE, (
                f"{name} declares weightless = True, but in round {number} {layer} depends on the "
                "clients' weights."
            )


def _rounds(
    cls: type[Strategy], options: dict[str, Any]
) -> Iterator[tuple[int, Strategy, AdapterState, list[Update]]]:
    for number in ROUNDS:
        rule = make_rule(cls, options)
        state = start_of(rule, round=number)
        yield number, rule, state, make_updates(rule, state)


def _in_other_basis(state: AdapterState, generator: torch.Generator) -> AdapterState:
    """Return the same products with factors turned by a random orthogonal matrix a layer."""
    factors = {}
    for layer, pair in state.factors.items():
        X = torch.randn(pair.rank, pair.rank, generator=generator, dtype=torch.float64)
        Q: Tensor = torch.linalg.qr(X).Q.to(pair.A.dtype)
        factors[layer] = LowRank(Q.mT @ pair.A, pair.B @ Q)
    return replace(state, factors=factors)


def _rescaled(state: AdapterState) -> AdapterState:
    factors = {n: LowRank(TIMES * p.A, p.B / TIMES) for n, p in state.factors.items()}
    return replace(state, factors=factors)
