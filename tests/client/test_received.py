"""No step begins from a state that is beyond the limits, wherever the steps before have led."""

from dataclasses import replace

import pytest
import torch

from fedsvd.client import training
from fedsvd.client.block_adamw import MOVE
from fedsvd.client.received import Limits, RefusedState, refuse
from fedsvd.client.rule import LocalRule
from fedsvd.client.training import train_locally
from fedsvd.privacy.dpsgd import ClippingOptimizer
from fedsvd.testing.architectures import ARCHITECTURES, small_worker
from tests.privacy.steps import moved_state

N = 10


def two_steps(*overrides, **how):
    given = ["training.local_steps=2", "training.microbatch_tokens=4096", *overrides]
    return small_worker(ARCHITECTURES["BERT"], *given, n=N, **how)


def second_sums(worker, patch):
    """The clipped sums of a second step on all examples, and on all but one, each in turn.

    The first step has drawn nobody, so all begin the second one from the same state: noise alone.
    """
    sums, drawn = [], []
    add = ClippingOptimizer.add_noise

    def keep(self):
        sums.append(torch.cat([p.summed_grad.flatten().double() for p in self.params]))
        add(self)

    def sample(rows, rate, generator):
        drawn.append(rows)
        return [] if len(drawn) % 2 else list(range(rows))

    patch.setattr(ClippingOptimizer, "add_noise", keep)
    patch.setattr(training, "poisson_sample", sample)
    rows, state = worker.parts[0], moved_state(worker)
    for left in (rows, *(rows[rows != out] for out in rows)):
        train_locally(replace(worker, parts=[left]), state, 0, 1)
    return sums[1::2]


def test_a_rate_cannot_let_one_example_move_more_than_the_clip(monkeypatch):
    worker = two_steps("training.lr=1e7")
    assert worker.plan.gradients == "hooks"
    with monkeypatch.context() as patch:
        patch.setattr(Limits, "hold", lambda *_: None)
        whole, *less = second_sums(worker, patch)
    moved = max(float((whole - one).norm()) for one in less) / worker.settings.privacy.clip_norm
    assert moved > 1.5  # what rounding is made of there
    reports = []
    with pytest.raises(RefusedState, match=r"entries of size .*, limit 1e\+03"):
        train_locally(worker, moved_state(worker), 0, 1, reports)
    assert len(reports) == 1  # the step that led there is spent


WAYS = {
    "a rate": (["training.lr=1e6"], LocalRule()),
    "a rate of A": ([], LocalRule(rate_A=1e7)),
    "a decay": (["training.weight_decay=1e8"], LocalRule()),
    "a pull to the start": ([], LocalRule(proximal_mu=1e9)),
    "a loss of the tail": ([], LocalRule(penalty=1e7, tail=0.3)),
    "steps of AdamW": (["training.optimizer=adamw", "training.lr=1e5"], LocalRule()),
    "steps of B A": (["training.lr=1e8"], LocalRule(steps="tangent")),
    "a pull along the last move": ([], LocalRule(steps="block_adamw", gamma=1.0)),
    "sides that take turns": (["training.lr=1e6"], LocalRule(alternates=True)),
}


@pytest.mark.parametrize("way", WAYS)
def test_every_way_out_of_the_limits_ends_before_the_next_step(way):
    overrides, rule = WAYS[way]
    worker = two_steps("training.local_steps=3", *overrides)
    state = moved_state(worker)
    if rule.steps == "block_adamw":
        moves = {f"{MOVE}{n}": torch.full_like(t, 1e6) for n, t in state.tensors().items()}
        state = replace(state, memory=moves)
    reports = []
    with pytest.raises(RefusedState):
        train_locally(worker, state, 0, 1, reports, rule)
    assert 1 <= len(reports) <= 2
    plain = two_steps("training.local_steps=3")
    assert len(train_locally(plain, moved_state(plain), 0, 1).steps) == 3


def test_without_privacy_by_example_nothing_is_asked():
    worker = two_steps("privacy=none", "training.lr=1e12")
    assert len(train_locally(worker, worker.initial, 0, 1).steps) == 2


@pytest.fixture(scope="module")
def held():
    worker = two_steps()
    state = moved_state(worker)
    return state.tensors(), refuse(worker.model.layers, worker.initial, state)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda t, n: {n: torch.full_like(t[n], float("nan"))}, r"\.B: entries of size nan"),
        (lambda t, n: {n: torch.full_like(t[n], float("inf"))}, r"\.B: entries of size inf"),
        (lambda t, n: {n: t[n] + 1e30}, r"\.B: entries of size inf"),  # its square overflows
        (lambda t, n: {n: 0 * t[n] + 1001}, r"\.B: entries of size 1e\+03, limit 1e\+03"),
        (lambda t, n: {"head.weight": t["head.weight"] - 1e4}, "head.weight: entries"),
        (lambda t, n: {k: 900 + 0 * t[k] for k in (n, f"{n[:-1]}A")}, r"A\|\|.*B\|\| is"),
    ],
)  # fmt: skip
def test_what_is_beyond_is_named(held, change, sentence):
    tensors, limits = held
    name = next(n for n in tensors if n.endswith(".B"))
    limits.hold(tensors)
    limits.hold({n: t for n, t in tensors.items() if not n.endswith(".A")})
    with pytest.raises(RefusedState, match=sentence):
        limits.hold({**tensors, **change(tensors, name)})


def test_a_factor_that_does_not_train_counts_as_it_was_received(held):
    worker = two_steps()
    tensors = moved_state(worker).tensors()
    name = next(n for n in tensors if n.endswith(".B"))
    long = moved_state(worker).update({f"{name[:-1]}A": 60 * tensors[f"{name[:-1]}A"]})
    moved = {name: 300 * tensors[name]}
    held[1].hold(moved)
    with pytest.raises(RefusedState, match=r"\|\|.*A\|\| \|\|.*B\|\| is"):
        refuse(worker.model.layers, worker.initial, long).hold(moved)
