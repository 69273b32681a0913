"""Bounds from one run: the theorem by a loop, and by how often they err."""

import numpy as np
import pytest
from scipy.stats import binom

from fedsvd.audit.estimators import gdp_epsilon
from fedsvd.audit.one_run import (
    correct_guesses,
    fdp_refuted,
    one_run_epsilon,
    one_run_mu,
    one_run_p,
)


def flipped(seed, mu, m=1000):
    """Scores of a mu-GDP mechanism with a fair coin a canary."""
    rng = np.random.default_rng(seed)
    coins = rng.random(m) < 0.5
    scores = mu * coins + rng.standard_normal(m)
    return scores[coins], scores[~coins]


@pytest.mark.parametrize(("m", "r", "v", "eps", "delta"), [
    (20, 10, 8, 0.5, 1e-3), (100, 100, 63, 0.2, 1e-5), (50, 7, 7, 1.0, 0.01), (9, 4, 0, 0.0, 0.1),
])  # fmt: skip
def test_the_probability_is_the_theorems_term_by_term(m, r, v, eps, delta):
    q = np.exp(eps) / (1 + np.exp(eps))
    at_least = sum(binom.pmf(k, r, q) for k in range(v, r + 1))
    largest = max(
        (sum(binom.pmf(k, r, q) for k in range(v - i, v)) / i for i in range(1, v + 1)), default=0.0
    )
    expected = min(1.0, at_least + 2 * m * delta * largest)
    assert one_run_p(m, r, v, eps, delta) == pytest.approx(expected, abs=1e-12)


def test_randomised_response_is_refuted_as_often_as_the_level_allows():
    rng = np.random.default_rng(0)
    eps, r = 1.0, 200
    right = rng.binomial(r, np.exp(eps) / (1 + np.exp(eps)), 4000)
    refuted = np.mean([one_run_p(r, r, int(v), eps, 0.0) < 0.05 for v in right])
    assert 0.02 < refuted <= 0.055


def test_guesses_are_the_extreme_scores():
    inside, outside = np.array([3.0, 1.0]), np.array([0.0, 2.0])
    assert correct_guesses(inside, outside, 2) == 2  # 0 is out, 3 is in
    assert correct_guesses(inside, outside, 4) == 2


@pytest.mark.parametrize("mu", [0.5, 2.0])
def test_bounds_err_at_most_as_often_as_they_say(mu):
    truth = gdp_epsilon(mu, 1e-5)
    found = [
        (one_run_mu(*s), one_run_epsilon(*s, 1e-5)) for s in (flipped(i, mu) for i in range(60))
    ]
    above = np.array(found) > np.array([mu, truth])
    assert above.mean(axis=0).max() <= 0.1
    assert np.mean([m for m, _ in found]) > 0.3 * mu


def test_nothing_is_bounded_where_nothing_is_told():
    bounds = [one_run_mu(*flipped(i, 0.0)) for i in range(40)]
    assert np.mean(np.array(bounds) > 0) <= 0.1


def test_more_right_guesses_refute_more():
    refuted = [fdp_refuted(1000, 200, v, 0.5, 0.05) for v in range(100, 201)]
    assert refuted == sorted(refuted)
    assert refuted[-1]
    assert not refuted[0]


def test_a_mechanism_that_tells_all_has_a_large_bound():
    found = one_run_epsilon(np.full(500, 9.0), np.zeros(500), 1e-5)
    assert found > 4
