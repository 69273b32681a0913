"""Real steps without noise on small models, to see how far one example moves their sum."""

from dataclasses import replace

import torch

from fedsvd.client.training import train_locally

N = 10
# Every example is clipped, so each could move all others; the rate makes a step of it that is large
# beside the rounding of what it is added to.
GIVEN = ["privacy.clip_norm=1e-3", "training.lr=1000", "training.schedule=constant"]


def bare(worker, rows):
    """The worker with these rows, all drawn in a step without noise."""
    plan = replace(worker.plan.clients[0], sample_rate=1.0, noise_multiplier=0.0)
    plan = replace(worker.plan, clients=(plan,))
    return replace(worker, plan=plan, parts=[torch.as_tensor(rows).numpy()])


def moved_state(worker, seed=1):
    """A state in which nothing is at its start."""
    g = torch.Generator().manual_seed(seed)
    tensors = {
        n: t + 0.1 * torch.randn(t.shape, generator=g) for n, t in worker.initial.tensors().items()
    }
    return worker.initial.update(tensors)


def step_sum(worker, rows, state, round=1):
    """The sum of clipped gradients of a real step, as one vector."""
    worker = bare(worker, rows)
    after = train_locally(worker, state, 0, round).state.tensors()
    before = state.tensors()
    scale = worker.settings.training.lr / worker.plan.clients[0].expected_batch
    names = worker.model.trainable()
    return torch.cat([(before[n] - after[n]).flatten().double() / scale for n in names])


def gap(worker, state, removed=0, **how):
    rows = [int(r) for r in worker.parts[0]]
    less = [r for r in rows if r != removed]
    moved = step_sum(worker, rows, state, **how) - step_sum(worker, less, state, **how)
    return float(moved.norm()) / worker.settings.privacy.clip_norm


def longest(worker):
    return int(worker.tokens.lengths.argmax())
