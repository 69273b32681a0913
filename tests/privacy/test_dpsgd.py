"""The DP step against a brute-force loop over examples, in float64."""

import math

import numpy as np
import pytest
import torch

from fedsvd.privacy.dpsgd import attach_hooks, dp_step, make_optimizer, poisson_sample
from tests.conftest import tiny_batch, tiny_classifier

CASES = [("B", False), ("B", True), ("AB", False), ("AB", True)]


def losses_of(model, inputs, labels):
    def losses(rows):
        # Trim to the group's longest text, as the product's batches are padded.
        width = int(inputs["attention_mask"][rows].sum(1).max())
        cut = {k: v[rows][:, :width] for k, v in inputs.items()}
        return torch.nn.functional.cross_entropy(model(cut), labels[rows], reduction="none")

    return losses


def brute_force(model, inputs, labels, clip):
    """The sum of clipped gradients, one backward pass an example."""
    names = list(model.trainable())
    total = {n: torch.zeros_like(p) for n, p in model.trainable().items()}
    losses = losses_of(model, inputs, labels)
    norms = []
    for i in range(len(labels)):
        grads = torch.autograd.grad(losses([i]).sum(), list(model.trainable().values()))
        size = math.sqrt(sum(float(g.pow(2).sum()) for g in grads))
        norms.append(size)
        for name, g in zip(names, grads, strict=True):
            total[name] += g * min(1.0, clip / size)
    return total, norms


def one_step(
    model, inputs, labels, groups, *, clip, sigma=0.0, lr=1.0, expected=1.0, seed=0, clipping="flat"
):
    hooks = attach_hooks(model)
    optimizer = make_optimizer(
        torch.optim.SGD(model.trainable().values(), lr=lr),
        noise_multiplier=sigma,
        clip_norm=clip,
        expected_batch=expected,
        generator=np.random.default_rng(seed),
        clipping=clipping,
    )
    before = {n: p.detach().clone() for n, p in model.trainable().items()}
    report = dp_step(optimizer, groups, losses_of(model, inputs, labels))
    hooks.cleanup()
    return {n: before[n] - p.detach() for n, p in model.trainable().items()}, report


@pytest.mark.parametrize(("trains", "head"), CASES)
@pytest.mark.parametrize("groups", [[list(range(9))], [[0, 1, 2], [3], [4, 5, 6, 7, 8]]])
def test_clipped_sum_equals_brute_force(trains, head, groups):
    model = tiny_classifier(trains, head)
    inputs, labels = tiny_batch(9)
    _, norms = brute_force(model, inputs, labels, 1.0)
    clip = sorted(norms)[4]  # half of the examples are clipped
    expected, _ = brute_force(model, inputs, labels, clip)
    moved, report = one_step(model, inputs, labels, groups, clip=clip)
    for name, value in expected.items():
        assert torch.allclose(moved[name], value, rtol=1e-6, atol=1e-9 * float(value.abs().max()))
    assert report.examples == 9
    assert torch.allclose(report.norms.sort().values.double(), torch.tensor(sorted(norms)).double())


@pytest.mark.parametrize(("trains", "head"), CASES)
def test_without_noise_and_clip_a_step_is_plain_sgd(trains, head):
    model, twin = tiny_classifier(trains, head), tiny_classifier(trains, head)
    inputs, labels = tiny_batch(8)
    moved, _ = one_step(model, inputs, labels, [list(range(8))], clip=1e12, lr=0.3, expected=8.0)
    loss = torch.nn.functional.cross_entropy(twin(inputs), labels)
    grads = torch.autograd.grad(loss, list(twin.trainable().values()))
    for name, g in zip(twin.trainable(), grads, strict=True):
        assert torch.allclose(moved[name], 0.3 * g, rtol=1e-6, atol=1e-12)


def test_an_empty_batch_is_a_step_of_noise_alone():
    model = tiny_classifier(head_trains=True)
    inputs, labels = tiny_batch(3)
    moved, report = one_step(model, inputs, labels, [], clip=0.5, sigma=2.0, expected=4.0)
    flat = torch.cat([m.flatten() for m in moved.values()])
    assert report.examples == 0
    assert math.isnan(report.loss)
    # Standard deviation sigma * clip / expected batch = 0.25, within 5 standard errors.
    assert abs(float(flat.std()) / 0.25 - 1) < 5 / math.sqrt(2 * len(flat))


def test_noise_is_added_once_however_the_batch_is_cut():
    inputs, labels = tiny_batch(6)
    results = []
    for groups in ([list(range(6))], [[i] for i in range(6)]):
        model = tiny_classifier()
        moved, _ = one_step(model, inputs, labels, groups, clip=0.1, sigma=1.0, seed=7)
        results.append(moved)
    for name in results[0]:
        assert torch.allclose(results[0][name], results[1][name], rtol=1e-9, atol=1e-12)


def test_what_is_frozen_does_not_move():
    model = tiny_classifier("B", head_trains=True)
    frozen = {n: p.detach().clone() for n, p in model.named_parameters() if not p.requires_grad}
    inputs, labels = tiny_batch(6)
    one_step(model, inputs, labels, [list(range(6))], clip=1.0, sigma=1.0)
    for name, p in model.named_parameters():
        if name in frozen:
            assert torch.equal(p, frozen[name]), name


def test_poisson_sampling_draws_each_example_with_its_rate():
    generator = np.random.default_rng(0)
    draws = [poisson_sample(100, 0.3, generator) for _ in range(2000)]
    sizes = torch.tensor([float(len(d)) for d in draws])
    assert abs(float(sizes.mean()) - 30) < 5 * math.sqrt(21 / 2000)
    assert abs(float(sizes.var()) / 21 - 1) < 0.2  # binomial, not a fixed size
    counts = torch.zeros(100)
    for d in draws:
        counts[d] += 1
    assert float((counts / 2000 - 0.3).abs().max()) < 5 * math.sqrt(0.21 / 2000)


def test_bf16_activations_give_float32_gradients():
    model = tiny_classifier(head_trains=True).float()
    exact = tiny_classifier(head_trains=True).float()
    model.precision = "bf16"
    inputs, labels = tiny_batch(8)
    moved, _ = one_step(model, inputs, labels, [list(range(8))], clip=1e9)
    reference, _ = one_step(exact, inputs, labels, [list(range(8))], clip=1e9)
    for name, value in moved.items():
        assert value.dtype == torch.float32
        assert float((value - reference[name]).norm() / reference[name].norm()) < 0.1
