import math

import numpy as np
import pytest
import torch
from scipy.stats import chi2

from fedsvd.errors import InputError
from fedsvd.privacy.client_level import ClientMechanism, make_mechanism, release

SHAPES = {"q.B": (6, 2), "head.weight": (3, 4)}


def states(n, seed=0, scale=1.0):
    generator = torch.Generator().manual_seed(seed)
    base = {k: torch.randn(*s, generator=generator) for k, s in SHAPES.items()}
    updates = [
        {k: v + scale * torch.randn(*v.shape, generator=generator) for k, v in base.items()}
        for _ in range(n)
    ]
    return base, updates


def flat(tensors):
    return np.concatenate([t.double().numpy().ravel() for t in tensors.values()])


def quiet(clip, m, **kwargs):
    return ClientMechanism(clip, 1e-9, m, **kwargs)


def test_without_noise_it_is_the_clipped_sum_over_a_fixed_number():
    base, updates = states(5)
    clip, m = 3.0, 4.0
    mean, after, norms = release(updates, base, quiet(clip, m), np.random.default_rng())
    deltas = [flat(u) - flat(base) for u in updates]
    expected = flat(base) + sum(d * min(1, clip / np.linalg.norm(d)) for d in deltas) / m
    np.testing.assert_allclose(flat(mean), expected, rtol=1e-5, atol=1e-6)
    np.testing.assert_allclose(norms.numpy(), [np.linalg.norm(d) for d in deltas], rtol=1e-5)
    assert after.clip_norm == clip


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
def test_a_client_moves_the_sum_by_at_most_the_clip(clipping):
    base, updates = states(4, scale=100.0)
    clip, m = 0.3, 7.0
    whole = release(updates, base, quiet(clip, m, clipping=clipping), np.random.default_rng())[0]
    for gone in range(4):
        rest = [u for i, u in enumerate(updates) if i != gone]
        part = release(rest, base, quiet(clip, m, clipping=clipping), np.random.default_rng())[0]
        assert np.linalg.norm(flat(whole) - flat(part)) * m <= clip * (1 + 1e-5)


@pytest.mark.parametrize("clients", [0, 3])
def test_noise_has_the_planned_variance_also_without_a_client(clients):
    base = {"q.B": torch.zeros(200, 50)}
    updates = [dict(base) for _ in range(clients)]
    mechanism = ClientMechanism(0.5, 4.0, 10.0)
    mean = release(updates, base, mechanism, np.random.default_rng(0))[0]
    values = flat(mean) / (4.0 * 0.5 / 10.0)
    low, high = chi2.ppf([1e-6, 1 - 1e-6], len(values))
    assert low < (values**2).sum() < high


def test_the_adaptive_clip_finds_the_quantile():
    base, updates = states(400)
    mechanism = ClientMechanism(
        0.01, 1e-3, 400.0, quantile=0.5, clip_rate=0.5, clip_noise=1.0
    )  # fmt: skip
    generator = np.random.default_rng(0)
    for _ in range(60):
        _, mechanism, norms = release(updates, base, mechanism, generator)
    assert mechanism.clip_norm == pytest.approx(float(norms.median()), rel=0.05)


def test_the_two_noises_of_the_adaptive_clip_compose_to_the_given_one():
    mechanism = ClientMechanism(1.0, 1.3, 50.0, quantile=0.5, clip_noise=2.5)
    # A client moves the sum by C and the count by 1/2: squared ratios to the noises add up.
    total = mechanism.update_noise**-2 + (0.5 / mechanism.clip_noise) ** 2
    assert total == pytest.approx(1.3**-2)
    assert ClientMechanism(1.0, 1.3, 50.0).update_noise == 1.3


def test_the_count_needs_enough_noise(settings):
    options = ["privacy=client_level", "privacy.clip_quantile=0.5"]
    with pytest.raises(InputError, match=r"privacy\.clip_noise.*half the noise multiplier"):
        make_mechanism(settings(*options, "privacy.clip_noise=0.4"), 1.0)
    mechanism = make_mechanism(settings(*options), 1.0)
    assert mechanism.expected_clients == 3
    assert math.isfinite(mechanism.update_noise)
    everybody = make_mechanism(settings(*options, "clients.participation=all"), 1.0)
    assert everybody.expected_clients == 6
