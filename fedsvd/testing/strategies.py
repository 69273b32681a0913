"""A conformance kit for aggregation rules: `check_strategy(MyStrategy, option=value)` in one line.

It measures what every rule must do and what each declares of itself (`Strategy.exact`, `.weighted`,
`.idempotent`, `.fixed_point`), on random clients of a small model with two shapes of layers and a
head. A rule that fails raises AssertionError with one sentence.
"""

import tempfile
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any, final

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Generator, Tensor

from fedsvd.engines.inline import InlineGrid
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.lowrank.pair import kind_of
from fedsvd.records import ARRAYS, METRICS, WEIGHT, fault, from_record, to_record
from fedsvd.results.checkpoint import read_checkpoint, write_checkpoint
from fedsvd.strategies.base import PublicView, Strategy, Update
from fedsvd.testing.claims import measured

SHAPES = {"first": (12, 20), "second": (12, 20), "third": (16, 10)}  # (d_out, d_in)
RANK = 3
WEIGHTS = (0.1, 0.2, 0.3, 0.4)
TOLERANCE = 1e-6  # relative, on float64 states


def check_strategy(cls: type[Strategy], **options: Any) -> None:
    """Raise AssertionError, with one sentence that says what is wrong, unless `cls` is sound.

    `options` go to its constructor. Checked: the order of clients does not matter; weights, equal
    clients, unchanged clients and exactness are as declared; the arguments and the global random
    state are left alone; what clients are not sent does not change; names, shapes, dtypes and the
    round hold; a client with NaN is refused before it; state goes through records and checkpoints,
    and the next round needs nothing but it.
    """
    name = cls.__name__
    for check in (
        _form, _arguments, _order, _weights, _equal, _unchanged, _exactness, _nan, _resumes,
    ):  # fmt: skip
        check(name, cls, options)


def make_state(seed: int = 0, dtype: torch.dtype = torch.float64, round: int = 12) -> AdapterState:
    """Return a state of random factors of rank 3 and a head, in the middle of a run.

    What happens every 2, 3, 4 or 6 rounds happens in round 12.
    """
    g = torch.Generator().manual_seed(seed)
    factors = {
        layer: LowRank(_draw((RANK, d_in), g).to(dtype), _draw((d_out, RANK), g).to(dtype))
        for layer, (d_out, d_in) in SHAPES.items()
    }
    extra = {"head.weight": _draw((3, 8), g).to(dtype), "head.bias": _draw((3,), g).to(dtype)}
    return AdapterState(factors, extra, round)


def make_updates(
    rule: Strategy, state: AdapterState, weights: Sequence[float] = WEIGHTS, seed: int = 1
) -> list[Update]:
    """Return updates of clients that each moved what `rule` has them send in the state's round."""
    g = torch.Generator().manual_seed(seed)
    updates = []
    for k, weight in enumerate(weights):
        moved = {n: t + 0.5 * _draw(t.shape, g).to(t.dtype) for n, t in _sent(rule, state).items()}
        updates.append(Update(k, weight, state.update(moved)))
    return updates


def distance(x: AdapterState, y: AdapterState) -> float:
    """Return the largest relative distance of W + B A over the layers, and of the head's tensors."""
    pairs = [(total(x, layer), total(y, layer)) for layer in y.factors]
    pairs += [(x.extra[n].double(), t.double()) for n, t in y.extra.items()]
    return max(float((a - b).norm() / (b.norm() + 1e-30)) for a, b in pairs)


def total(state: AdapterState, layer: str) -> Tensor:
    """Return W + B A of a layer as a dense (d_out, d_in) float64 matrix."""
    pair = state.factors[layer]
    product = pair.B.double() @ pair.A.double()
    return product + state.base[layer].double() if layer in state.base else product


@final
class QuadraticView(PublicView):
    """A public problem with a known answer: half the squared distance to fixed tensors."""

    def gradients(self, state: AdapterState) -> tuple[float, dict[str, Tensor]]:
        """Return the loss and x - target for every factor and tensor of the head."""
        g, apart = torch.Generator().manual_seed(7), {}
        for name, x in state.select(("A", "B", "extra")).items():
            apart[name] = x - _draw(x.shape, g).to(x)
        return 0.5 * float(sum(x.square().sum() for x in apart.values())), apart

    def weight(self, layer: str) -> Tensor:
        """Return a fixed random weight of the layer's shape."""
        return _draw(SHAPES[layer], torch.Generator().manual_seed(8))

    def moment(self, layer: str) -> Tensor:
        """Return the second moment of fixed random inputs of the layer."""
        X = _draw((20, SHAPES[layer][1]), torch.Generator().manual_seed(9))
        return X.mT @ X / len(X)


def _make(cls: type[Strategy], options: Mapping[str, Any]) -> Strategy:
    rule = cls(**options)
    rule.public = QuadraticView()
    return rule


def _draw(shape: Sequence[int], generator: Generator) -> Tensor:
    return torch.randn(*shape, generator=generator, dtype=torch.float64)


def _sent(rule: Strategy, state: AdapterState) -> dict[str, Tensor]:
    kinds = [kind for kind in rule.trains_in(state.round) if kind not in rule.keeps]
    return state.select((*kinds, "extra"))


def _form(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    for dtype in (torch.float64, torch.float32):
        rule, state = _make(cls, options), make_state(dtype=dtype)
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
    rule, state = _make(cls, options), make_state()
    updates = make_updates(rule, state)
    given = [state, *(u.state for u in updates)]
    before, randomness = [s.digest() for s in given], torch.random.get_rng_state()
    first = rule.aggregate(state, updates)
    assert [s.digest() for s in given] == before, f"{name} changes tensors that it was given."
    untouched = torch.equal(torch.random.get_rng_state(), randomness)
    again = _make(cls, options).aggregate(state, updates)
    assert untouched, f"{name} draws from the global random generator."
    assert first.digest() == again.digest(), f"{name} gives other bits for the same arguments."


def _order(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    rule, state = _make(cls, options), make_state()
    updates = make_updates(rule, state)
    there = rule.aggregate(state, updates)
    turned = [updates[i] for i in (2, 0, 3, 1)]
    back = _make(cls, options).aggregate(
        state, [replace(u, client=k) for k, u in enumerate(turned)]
    )
    assert distance(back, there) < TOLERANCE, f"{name} depends on the order of the clients."


def _weights(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    rule, state = _make(cls, options), make_state()
    updates = make_updates(rule, state)
    last = updates[-1]
    halves = [Update(k, last.weight / 2, last.state) for k in (3, 4)]
    whole = rule.aggregate(state, updates)
    found = distance(_make(cls, options).aggregate(state, [*updates[:-1], *halves]), whole)
    measured(name, "weighted", rule.weighted, found < TOLERANCE,
              "counts two clients alike as one of twice the weight")  # fmt: skip


def _equal(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    rule, state = _make(cls, options), make_state()
    one = make_updates(rule, state)[0]
    new = rule.aggregate(state, [Update(k, w, one.state) for k, w in enumerate(WEIGHTS)])
    found = distance(new, one.state)
    measured(name, "idempotent", rule.idempotent, found < TOLERANCE,
              "gives equal clients back what they sent")  # fmt: skip


def _unchanged(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    rule, state = _make(cls, options), make_state()
    new = rule.aggregate(state, [Update(k, w, state) for k, w in enumerate(WEIGHTS)])
    found = distance(new, state)
    measured(name, "fixed_point", rule.fixed_point, found < TOLERANCE,
              "leaves W + B A as it is when no client changes anything")  # fmt: skip


def _exactness(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    rule, state = _make(cls, options), make_state()
    updates = make_updates(rule, state)
    new = rule.aggregate(state, updates)
    worst = 0.0
    for layer in state.factors:
        mean = sum((u.weight * total(u.state, layer) for u in updates), torch.zeros(()))
        worst = max(worst, float((total(new, layer) - mean).norm() / mean.norm()))
    measured(name, "exact", rule.exact, worst < TOLERANCE,
              "makes W + B A the weighted mean of the clients' products")  # fmt: skip


def _nan(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    rule, state = _make(cls, options), make_state()
    sent = _sent(rule, state)
    assert sent, f"{name} has clients send nothing."
    app = ClientApp()

    @app.train()
    def spoil(message: Message, context: Context) -> Message:
        bad = {n: t.clone() for n, t in sent.items()}
        bad[list(sent)[int(context.node_id)]].view(-1)[0] = float("nan")
        content = RecordDict({ARRAYS: to_record(bad), METRICS: MetricRecord({WEIGHT: 1.0})})
        return Message(content, reply_to=message)

    grid = InlineGrid(app, len(sent))
    arrays = to_record(state.tensors())
    messages = rule.configure_train(state.round, arrays, ConfigRecord(), grid)
    for key, reply in zip(sent, grid.send_and_receive(messages), strict=True):
        why = fault(reply, sent)
        assert why == f"{key!r} is not finite", f"{name} would be given a client with NaN in {key}."


def _resumes(name: str, cls: type[Strategy], options: dict[str, Any]) -> None:
    rule, state = _make(cls, options), make_state()
    first = rule.aggregate(state, make_updates(rule, state))
    straight = _next_round(first)
    assert straight.digest() == first.digest(), f"{name} returns a state that records do not carry."
    with tempfile.TemporaryDirectory() as folder:
        write_checkpoint(Path(folder) / "state.safetensors", first)
        resumed = _next_round(read_checkpoint(Path(folder) / "state.safetensors"))
    one = rule.aggregate(straight, make_updates(rule, straight, seed=2))
    two = _make(cls, options).aggregate(resumed, make_updates(rule, resumed, seed=2))
    assert one.digest() == two.digest(), (
        f"{name} remembers something beside the state: resumed, it goes on otherwise."
    )


def _next_round(state: AdapterState) -> AdapterState:
    """Return what the next round begins with: the state through a record, as the server gets it."""
    tensors = from_record(to_record(state.tensors()))
    return AdapterState.from_tensors(tensors, state.round + 1)
