"""A data-free regulariser: it acts after clipping and noise, by its own rate or as a loss."""

import pytest
import torch

from fedsvd.client import training
from fedsvd.client.rule import LocalRule
from fedsvd.testing.architectures import ARCHITECTURES, small_worker


@pytest.mark.parametrize("privacy", ["dp_sgd", "none"])
@pytest.mark.parametrize("optimizer", ["sgd", "adamw"])
@pytest.mark.parametrize("lr", [0.5, 3e-5])
def test_sorsa_moves_by_its_own_rate_whatever_the_learning_rate(privacy, optimizer, lr):
    with_it, without, found, named = both(
        "adapter=sorsa", "adapter.gamma=0.3", f"training.lr={lr}", f"training.optimizer={optimizer}",
        privacy=privacy,
    )  # fmt: skip
    assert sum(g is not None for g in found) == 8  # U and Vh of four layers; S is free
    # Linear schedule: lr_3 / lr_0 = (4 - 3 + 1) / 4. Nothing clips it, and noise and sample are those
    # of the run without it. Gamma is in the penalty.
    for name, gradient in zip(named, found, strict=True):
        moved = with_it.state.tensors()[name] - without.state.tensors()[name]
        expected = torch.zeros_like(moved) if gradient is None else -(2 / 4) * gradient
        assert gradient is None or float(expected.norm()) > 1e-3
        torch.testing.assert_close(moved, expected, rtol=1e-3, atol=2e-6)
    norms = [torch.cat([s.norms for s in r.steps]) for r in (with_it, without)]
    if privacy == "dp_sgd":  # what is clipped does not see it
        assert torch.equal(*norms)


@pytest.mark.parametrize("privacy", ["dp_sgd", "none"])
def test_a_regulariser_that_is_part_of_the_loss_is_multiplied_by_the_learning_rate(privacy):
    with_it, without, found, named = both(
        "adapter=effort", "adapter.orthogonality=30", "training.lr=0.5", privacy=privacy
    )
    for name, gradient in zip(named, found, strict=True):
        moved = with_it.state.tensors()[name] - without.state.tensors()[name]
        torch.testing.assert_close(moved, -0.5 * (2 / 4) * gradient, rtol=1e-3, atol=1e-4)


def both(*overrides, privacy):
    """A step with and without the penalty, its gradient where it starts, and the names that train."""
    noise = ["privacy.epsilon=null", "privacy.noise_multiplier=1"] if privacy == "dp_sgd" else []
    worker = small_worker(
        ARCHITECTURES["BERT"], "rounds=4", "training.schedule=linear", f"privacy={privacy}", *noise,
        "strategy=fedavg", *overrides, trains=(),
    )  # fmt: skip
    penalty, round = worker.model.penalty, 3
    # Away from orthonormal, where the norm's gradient is smooth.
    g = torch.Generator().manual_seed(0)
    state = worker.initial.update(
        {n: t + 0.1 * torch.randn(t.shape, generator=g) for n, t in worker.initial.extra.items()}
    )
    worker.model.write(state)
    named = {n: p for n, p in worker.model.trainable().items() if not n.startswith("head")}
    found = torch.autograd.grad(penalty(), list(named.values()), allow_unused=True)
    with_it = training.train_locally(worker, state, 0, round)
    worker.model.penalty = None
    without = training.train_locally(worker, state, 0, round)
    return with_it, without, found, named


def test_a_penalty_follows_factors_that_take_turns():
    worker = small_worker(ARCHITECTURES["BERT"], "strategy=fedavg", "privacy=none")
    factors = {n: p for n, p in worker.model.trainable().items() if not n.startswith("head")}
    worker.model.penalty = lambda: sum(p.square().sum() for p in factors.values())
    found = training.train_locally(
        worker, worker.initial, 0, 1, rule=LocalRule(alternates=True, smoothing=1.0)
    )
    before, after = worker.initial.tensors(), found.state.tensors()
    moved = {n for n in factors if not torch.equal(before[n], after[n])}
    assert {n.rsplit(".", 1)[-1] for n in moved} == {"B"}  # the one step is B's
