"""Estimators against closed forms, simulations and a second library."""

import math

import dp_accounting
import numpy as np
import pytest
from scipy.stats import norm

from fedsvd.audit.estimators import (
    clopper_pearson_upper,
    gaussian_mu,
    gdp_delta,
    gdp_epsilon,
    limit_mu,
    step_mu,
    threshold_mu,
)
from fedsvd.privacy.accounting import epsilon


def drawn(seed, mu, n=1000):
    rng = np.random.default_rng(seed)
    return rng.normal(mu, 1, n), rng.normal(0, 1, n)


@pytest.mark.parametrize("mu", [0.05, 0.244, 1.0, 4.0, 30.0])
@pytest.mark.parametrize("delta", [1e-5, 1e-2])
def test_epsilon_of_gaussian_dp_is_the_analytic_gaussian_mechanisms(mu, delta):
    expected = dp_accounting.get_epsilon_gaussian(1 / mu, delta)
    assert gdp_epsilon(mu, delta) == pytest.approx(expected, rel=1e-5, abs=1e-7)


def test_delta_of_gaussian_dp_is_the_integral_over_the_privacy_loss():
    mu, eps = 1.3, 0.7
    x = np.linspace(-12, 12, 400_001)
    excess = norm.pdf(x, mu) - math.exp(eps) * norm.pdf(x)
    assert gdp_delta(eps, mu) == pytest.approx(np.trapezoid(np.maximum(excess, 0), x), rel=1e-6)


def test_no_shift_costs_nothing():
    assert gdp_epsilon(0.0, 1e-5) == gdp_epsilon(-1.0, 1e-5) == 0.0
    assert gdp_epsilon(math.inf, 1e-5) == math.inf


@pytest.mark.parametrize("mu", [0.244, 2.0])
def test_the_standard_error_is_that_of_repeated_runs(mu):
    found = [gaussian_mu(*drawn(seed, mu)) for seed in range(400)]
    values = np.array([f.value for f in found])
    assert values.mean() == pytest.approx(mu, abs=5 * values.std() / 20)
    assert np.mean([f.se for f in found]) == pytest.approx(values.std(), rel=0.12)


def test_scores_without_any_noise_tell_everything():
    assert gaussian_mu(np.ones(5), np.zeros(5)).value == math.inf


def test_the_limit_of_a_rate_of_errors_is_exact():
    from scipy.stats import binom

    limit = clopper_pearson_upper(3, 50, 0.95)
    assert binom.cdf(3, 50, limit) == pytest.approx(0.05)
    assert clopper_pearson_upper(50, 50, 0.95) == 1.0


def test_a_threshold_bounds_mu_from_below_and_not_by_much():
    bounds = [threshold_mu(*drawn(seed, 1.0), 0.5) for seed in range(300)]
    assert np.mean(np.array(bounds) > 1.0) <= 0.05
    assert np.mean(bounds) > 0.75


@pytest.mark.parametrize(("rate", "noise", "steps"), [(0.11254, 3.27, 50), (0.05, 2.0, 200)])
def test_the_limits_mu_gives_the_accountants_epsilon(rate, noise, steps):
    exact = epsilon([(noise, rate, steps)], 1e-5, "prv")
    assert gdp_epsilon(limit_mu(rate, noise, steps), 1e-5) == pytest.approx(exact, rel=0.1)


def test_at_rate_one_the_limit_is_exact():
    exact = epsilon([(3.0, 1.0, 20)], 1e-5, "pld")
    assert gdp_epsilon(limit_mu(1.0, 3.0, 20), 1e-5) == pytest.approx(exact, rel=1e-3)
    assert step_mu(1.0, 3.0, 20) == pytest.approx(limit_mu(1.0, 3.0, 20))


def test_the_mean_shift_of_summed_scores_is_that_of_a_simulation():
    rng = np.random.default_rng(0)
    rate, noise, steps, n = 0.2, 1.5, 30, 40_000
    out = noise * math.sqrt(steps) * rng.standard_normal(n)
    inside = rng.binomial(steps, rate, n) + noise * math.sqrt(steps) * rng.standard_normal(n)
    mu = gaussian_mu(inside, out)
    assert mu.value == pytest.approx(step_mu(rate, noise, steps), abs=5 * mu.se)
