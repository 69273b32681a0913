"""A data-free regulariser: added after clipping and noise, at the learning rate's share."""

import pytest
import torch

from fedsvd.client import training
from fedsvd.client.rule import LocalRule
from fedsvd.client.worker import get_worker
from tests.conftest import TINY, compose_settings

SETTINGS = [
    *TINY, "adapter=sorsa", "strategy=fedavg", "adapter.rank=2",
    "adapter.targets=[encoder.layer.0.attention.self.query]",
    "rounds=4", "training.lr=0.5", "privacy.epsilon=null", "privacy.noise_multiplier=1",
]  # fmt: skip


@pytest.mark.parametrize("privacy", ["dp_sgd", "none"])
def test_a_step_differs_by_the_penaltys_gradient_alone(privacy):
    overrides = [o for o in SETTINGS if privacy == "dp_sgd" or not o.startswith("privacy.n")]
    overrides = [o for o in overrides if privacy == "dp_sgd" or not o.startswith("privacy.e")]
    worker = get_worker(compose_settings(*overrides, f"privacy={privacy}", "adapter.gamma=300"))
    penalty, round = worker.model.penalty, 3
    # Away from orthonormal, where the norm's gradient is smooth.
    g = torch.Generator().manual_seed(0)
    state = worker.initial.update(
        {n: t + 0.1 * torch.randn(t.shape, generator=g) for n, t in worker.initial.extra.items()}
    )
    worker.model.write(state)
    named = {n: p for n, p in worker.model.trainable().items() if not n.startswith("head")}
    found = torch.autograd.grad(penalty(), list(named.values()), allow_unused=True)
    assert sum(g is not None for g in found) == 2  # U and Vh; S is free
    with_it = training.train_locally(worker, state, 0, round)
    worker.model.penalty = None
    without = training.train_locally(worker, state, 0, round)
    worker.model.penalty = penalty
    # Linear schedule: lr_3 = lr (4 - 3 + 1) / 4, and the same share of gamma. Nothing clips it: gamma
    # is 300, the clip 1, and noise and sample are those of the run without it.
    lr = 0.5 * 2 / 4
    for (name, _), gradient in zip(named.items(), found, strict=True):
        moved = with_it.state.tensors()[name] - without.state.tensors()[name]
        if gradient is None:
            assert torch.equal(moved, torch.zeros_like(moved))
        else:
            torch.testing.assert_close(moved, -lr * (2 / 4) * gradient, rtol=1e-3, atol=1e-4)
    norms = [torch.cat([s.norms for s in r.steps]) for r in (with_it, without)]
    if privacy == "dp_sgd":  # what is clipped does not see it
        assert torch.equal(*norms)


def test_a_penalty_follows_factors_that_take_turns():
    given = [o for o in SETTINGS if not o.startswith(("adapter=", "strategy=", "privacy."))]
    worker = get_worker(compose_settings(*given, "adapter=lora", "strategy=fedavg", "privacy=none"))
    factors = {n: p for n, p in worker.model.trainable().items() if not n.startswith("head")}
    try:
        worker.model.penalty = lambda: sum(p.square().sum() for p in factors.values())
        found = training.train_locally(
            worker, worker.initial, 0, 1, rule=LocalRule(alternates=True, smoothing=1.0)
        )
    finally:
        worker.model.penalty = None
    before, after = worker.initial.tensors(), found.state.tensors()
    moved = {n for n in factors if not torch.equal(before[n], after[n])}
    assert {n.rsplit(".", 1)[-1] for n in moved} == {"B"}  # the one step is B's
