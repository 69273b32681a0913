"""A conformance kit for aggregation rules: `check_strategy(MyStrategy, option=value)` in one line.

It measures what every rule must do and what each declares of itself (`Strategy.exact`, `.weighted`,
`.idempotent`, `.fixed_point`, `.averages`, `.mean_only`, `.any_rank`, and in
`fedsvd.testing.invariance` `.any_basis`, `.any_scale`, `.weightless`) on the clients of
`fedsvd.testing.cases`. A rule that fails raises AssertionError with one sentence.
"""

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsvd.checkpoints.checkpoint import read_checkpoint, write_checkpoint
from fedsvd.engines.inline import InlineGrid
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.pair import kind_of
from fedsvd.records import ARRAYS, METRICS, WEIGHT, fault, from_record, to_record
from fedsvd.strategies.base import Strategy, Update
from fedsvd.testing.cases import (
    RANK,
    ROUND,
    TOLERANCE,
    WEIGHTS,
    distance,
    make_rule,
    make_updates,
    next_round,
    sent,
    start_of,
    total,
)
from fedsvd.testing.claims import measured
from fedsvd.testing.invariance import any_basis, any_scale, weightless


def check_strategy(cls: type[Strategy], **options: Any) -> None:
    """Raise AssertionError, with one sentence that names what is wrong, unless `cls` is sound.

    `options` go to its constructor. It checks that

    - what it begins with has the W + B A that it was given;
    - neither the order of clients nor that of their replies matters;
    - weights, equal clients, unchanged clients, exactness and `mean_only` are as declared, in a round
      in which every periodic step is due and in the next one, with noise of a known level;
    - the basis of a rule that a server optimiser can follow stays, also in a run's first rounds;
    - the basis, the scale and the weights do not matter where this is claimed;
    - a first round, from B = 0, gives finite numbers;
    - the arguments and the global random state stay as they are;
    - what clients are not sent does not change;
    - names, shapes, dtypes, ranks and the round are right, also for clients of other ranks where they
      are declared;
    - a client with NaN is refused;
    - the state goes through records and checkpoints, and the next round needs only the state.
    """
    name = cls.__name__
    for check in (
        _begins, _form, _first, _arguments, _order, _weights, _equal, _unchanged, _basis_stays,
        any_basis, any_scale, weightless, _exactness, _mean, _ranks, _nan, _resumes,
    ):  # fmt: skip
        check(name, cls, options)


def _first(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    """Round 1 of LoRA: B is 0 in every layer, and of some clients still is when they reply."""
    rule = make_rule(cls, options)
    state = start_of(rule, round=1)
    state = _empty(state)
    moved = make_updates(rule, state)
    for updates in (moved, [replace(u, state=state) for u in moved], [moved[0]]):
        new = make_rule(cls, options).aggregate(state, updates)
        finite = all(bool(t.isfinite().all()) for t in new.tensors().values())
        assert finite, f"{name} returns values that are not finite in a first round, where B is 0."


def _rounds(
    cls: type[Strategy], options: Mapping[str, Any]
) -> Iterator[tuple[Strategy, AdapterState]]:
    """Yield a new rule and the state for a round in which much is due, and for the next one."""
    for round in (ROUND, ROUND + 1):
        rule = make_rule(cls, options)
        yield rule, start_of(rule, round=round)


def _begins(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    rule = make_rule(cls, options)
    for first in (start_of(rule, round=0), _empty(start_of(rule, round=0))):
        begun, before = rule.begin(first), first.tensors()
        apart = max(float((total(begun, n) - total(first, n)).norm()) for n in first.factors)
        assert apart < TOLERANCE, f"{name} begins with another W + B A than the adapter's."
        for key, value in begun.tensors().items():
            assert kind_of(key) in (*cls.broadcasts, "memory") or torch.equal(value, before[key]), (
                f"{name} begins with another {key}, which it does not broadcast."
            )


def _empty(state: AdapterState) -> AdapterState:
    """Return the state with B = 0, as most adapters start."""
    return state.update({n: torch.zeros_like(t) for n, t in state.select(("B",)).items()})


def _form(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    for dtype in (torch.float64, torch.float32):
        rule = make_rule(cls, options)
        state = start_of(rule, dtype)
        new = rule.aggregate(state, make_updates(rule, state))
        assert isinstance(new, AdapterState), f"{name} returns no AdapterState."
        assert list(new.factors) == list(state.factors), f"{name} loses or reorders layers."
        assert set(new.extra) == set(state.extra), f"{name} loses or adds tensors of the head."
        assert new.round == state.round, f"{name} changes the round's number."
        before = state.tensors()
        for key, value in new.tensors().items():
            old = before.get(key, value)
            assert value.shape == old.shape, f"{name} changes the shape of {key}."
            assert value.dtype == dtype, f"{name} turns {key} from {dtype} into {value.dtype}."
            assert bool(value.isfinite().all()), (
                f"{name} returns values in {key} that are not finite."
            )
            known = (*cls.broadcasts, "extra", "memory")
            assert kind_of(key) in known or torch.equal(value, old), (
                f"{name} changes {key}, which it does not broadcast: clients would not see it."
            )


def _arguments(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    rule = make_rule(cls, options)
    state = start_of(rule)
    updates = make_updates(rule, state)
    given = [state, *(u.state for u in updates)]
    before, randomness = [s.digest() for s in given], torch.random.get_rng_state()
    first = rule.aggregate(state, updates)
    assert [s.digest() for s in given] == before, f"{name} changes tensors that it was given."
    untouched = torch.equal(torch.random.get_rng_state(), randomness)
    again = make_rule(cls, options).aggregate(state, updates)
    assert untouched, f"{name} draws from the global random generator."
    assert first.digest() == again.digest(), f"{name} gives other bits for the same arguments."


def _order(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    for rule, state in _rounds(cls, options):
        updates = make_updates(rule, state)
        there = rule.aggregate(state, updates)
        turned = [updates[i] for i in (2, 0, 3, 1)]
        back = make_rule(cls, options).aggregate(
            state, [replace(u, client=k) for k, u in enumerate(turned)]
        )
        assert distance(back, there) < TOLERANCE, f"{name} depends on the order of the clients."


def _weights(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    found = 0.0
    for rule, state in _rounds(cls, options):
        updates = make_updates(rule, state)
        last = updates[-1]
        halves = [Update(k, last.weight / 2, last.state) for k in (3, 4)]
        whole = rule.aggregate(state, updates)
        split = make_rule(cls, options).aggregate(state, [*updates[:-1], *halves])
        found = max(found, distance(split, whole))
    measured(name, "weighted", rule.weighted, found < TOLERANCE,
              "counts two clients alike as one of twice the weight")  # fmt: skip


def _equal(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    found = 0.0
    for rule, state in _rounds(cls, options):
        one = make_updates(rule, state)[0]
        new = rule.aggregate(state, [Update(k, w, one.state) for k, w in enumerate(WEIGHTS)])
        found = max(found, distance(new, one.state))
    measured(name, "idempotent", rule.idempotent, found < TOLERANCE,
              "gives equal clients back what they sent")  # fmt: skip


def _unchanged(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    found = 0.0
    for rule, state in _rounds(cls, options):
        new = rule.aggregate(state, [Update(k, w, state) for k, w in enumerate(WEIGHTS)])
        found = max(found, distance(new, state))
        for key, old in state.select(("A", "B")).items():
            moved = float((new.tensors()[key] - old).norm() / old.norm())
            # What needs the noise is refused beside a server optimiser.
            assert not rule.averages or rule.needs_noise or moved < TOLERANCE, (
                f"{name} declares averages = True, but it gives {key} another basis, where a server "
                "optimiser would take the difference for a step."
            )
    measured(name, "fixed_point", rule.fixed_point, found < TOLERANCE,
              "leaves W + B A as it is when no client changes anything")  # fmt: skip


def _mean(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    for rule, state in _rounds(cls, options):
        if not rule.mean_only:
            continue
        updates = make_updates(rule, state)
        g = torch.Generator().manual_seed(5)
        moves = {
            n: torch.randn(t.shape, generator=g, dtype=torch.float64).to(t.dtype)
            for n, t in sent(rule, state).items()
        }
        others = list(updates)
        for at, sign in ((0, 1.0), (1, -1.0)):
            u, tensors = updates[at], updates[at].state.tensors()
            moved = {n: tensors[n] + sign / u.weight * d for n, d in moves.items()}
            others[at] = replace(u, state=u.state.update(moved))
        new, same = rule.aggregate(state, updates), make_rule(cls, options).aggregate(state, others)
        assert distance(same, new) < TOLERANCE, (
            f"{name} declares mean_only = True, but it gives another state for other replies of the "
            "same mean: the figure of the published model would be too low."
        )


def _basis_stays(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    """A rule that turns to an old reference, and not to what the round began with, shows later."""
    rule = make_rule(cls, options)
    if not rule.averages:
        return
    state = start_of(rule, round=1)
    for number in (1, 2, 3):
        state = next_round(rule.aggregate(state, make_updates(rule, state, seed=number)))
        new = rule.aggregate(state, [Update(k, w, state) for k, w in enumerate(WEIGHTS)])
        for key, old in state.select(("A", "B")).items():
            moved = float((new.tensors()[key] - old).norm() / old.norm())
            assert moved < TOLERANCE, (
                f"{name} declares averages = True, but in round {state.round} it gives {key} another "
                "basis than that of the state that the round began with."
            )


def _exactness(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    worst = 0.0
    for rule, state in _rounds(cls, options):
        updates = make_updates(rule, state)
        worst = max(worst, _inexact(rule.aggregate(state, updates), updates))
    measured(name, "exact", rule.exact, worst < TOLERANCE,
              "makes W + B A the weighted mean of the clients' products")  # fmt: skip


def _inexact(new: AdapterState, updates: Sequence[Update]) -> float:
    """Return the largest relative distance of W + B A to the weighted mean of the clients'."""
    worst = 0.0
    for layer in new.factors:
        mean = sum((u.weight * total(u.state, layer) for u in updates), torch.zeros(()))
        worst = max(worst, float((total(new, layer) - mean).norm() / mean.norm()))
    return worst


def _ranks(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    if not cls.any_rank:
        return
    for ranks in ((1, 2, RANK, 2), (1,)):  # all kinds, and fewer components than the state has
        rule = make_rule(cls, options)
        state, weights = start_of(rule), WEIGHTS if len(ranks) > 1 else (1.0,)
        updates = make_updates(rule, state, weights, ranks=ranks)
        try:
            new = rule.aggregate(state, updates)
        except Exception as error:  # an author's class may fail in any way
            raise AssertionError(
                f"{name} declares any_rank = True, but fails for clients of ranks {ranks}: {error}."
            ) from error
        for layer, pair in new.factors.items():
            assert pair.rank == RANK, (
                f"{name} turns rank {RANK} of {layer} into {pair.rank} for clients of ranks {ranks}."
            )
        finite = all(bool(t.isfinite().all()) for t in new.tensors().values())
        assert finite, f"{name} returns values that are not finite for clients of ranks {ranks}."
        assert not rule.exact or _inexact(new, updates) < TOLERANCE, (
            f"{name} declares exact = True, but it is not so for clients of ranks {ranks}."
        )


def _nan(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    rule = make_rule(cls, options)
    state = start_of(rule)
    wanted = sent(rule, state)
    assert wanted, f"{name} has clients send nothing."
    good = [sent(rule, u.state) for u in make_updates(rule, state)]
    app = ClientApp()

    @app.train()
    def spoil(message: Message, context: Context) -> Message:
        k = int(context.node_id)
        tensors = good[k % len(good)]
        if k < len(wanted):  # a client for every tensor that it can spoil, then sound ones
            tensors = {n: t.clone() for n, t in tensors.items()}
            tensors[list(wanted)[k]].view(-1)[0] = float("nan")
        content = RecordDict({ARRAYS: to_record(tensors), METRICS: MetricRecord({WEIGHT: 1.0 + k})})
        return Message(content, reply_to=message)

    def replies(rule: Strategy) -> list[Message]:
        grid = InlineGrid(app, len(wanted) + 3)
        arrays = to_record(state.tensors())
        return list(
            grid.send_and_receive(rule.configure_train(state.round, arrays, ConfigRecord(), grid))
        )

    every = replies(rule)
    for key, reply in zip(wanted, every, strict=False):
        why = fault(reply, wanted)
        assert why == f"{key!r} is not finite", f"{name} would be given a client with NaN in {key}."
    # Flower's own loop does not look at replies before the strategy does.
    some = rule.aggregate_train(state.round, every)[0]
    again = make_rule(cls, options)
    fewer = again.aggregate_train(state.round, replies(again)[: len(wanted) - 1 : -1])[0]
    assert some is not None, f"{name} makes nothing of valid replies."
    assert fewer is not None, f"{name} makes nothing of three valid replies."
    bits = [AdapterState.from_tensors(from_record(r)).digest() for r in (some, fewer)]
    assert bits[0] == bits[1], (
        f"{name} lets a client with NaN into its result, or goes by the order of arrival."
    )


def _resumes(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    rule = make_rule(cls, options)
    state = start_of(rule)
    first = rule.aggregate(state, make_updates(rule, state))
    straight = next_round(first)
    assert straight.digest() == first.digest(), f"{name} returns a state that records do not carry."
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / "state.safetensors", first)
        resumed = next_round(read_checkpoint(Path(folder) / "state.safetensors"))
    one = rule.aggregate(straight, make_updates(rule, straight, seed=2))
    two = make_rule(cls, options).aggregate(resumed, make_updates(rule, resumed, seed=2))
    assert one.digest() == two.digest(), (
        f"{name} remembers something beside the state: resumed, it goes on otherwise."
    )
