"""From scores of canaries that were in and canaries that were out to mu and to epsilon.

A mechanism is mu-GDP if telling neighbours apart is at least as hard as telling N(0, 1) from N(mu, 1)
(Dong, Roth, Su, JRSS B 2022). Scores are expected to be larger for canaries that were in.
"""

import math
from dataclasses import dataclass

import numpy as np
from scipy.optimize import brentq
from scipy.stats import beta, norm

CONFIDENCE = 0.95
MOST_MU = 200.0  # beyond which a threshold tells neighbours apart without an error


@dataclass(frozen=True)
class Estimate:
    """A number that was measured, and its standard error."""

    value: float
    se: float

    def lower(self, confidence: float = CONFIDENCE) -> float:
        """Return the one-sided lower confidence limit, by the normal approximation."""
        return self.value - float(norm.ppf(confidence)) * self.se


def gaussian_mu(inside: np.ndarray, outside: np.ndarray) -> Estimate:
    """Return mu = (mean in - mean out) / (deviation of out), which is exact for Gaussian scores.

    The standard error is the delta method's: var in / (n s^2) + 1 / m + mu^2 / (2 m) for n scores in
    and m out of deviation s. It is an estimate, and a bound on nothing unless scores are Gaussian.
    """
    n, m = len(inside), len(outside)
    s = float(np.std(outside, ddof=1))
    if s == 0:
        return Estimate(math.inf, 0.0)
    mu = (float(np.mean(inside)) - float(np.mean(outside))) / s
    variance = float(np.var(inside, ddof=1)) / (n * s * s) + 1 / m + mu * mu / (2 * m)
    return Estimate(mu, math.sqrt(variance))


def gdp_delta(epsilon: float, mu: float) -> float:
    """Return delta(epsilon) of mu-GDP: Phi(-e/mu + mu/2) - exp(e) Phi(-e/mu - mu/2).

    Corollary 2.13 of Dong, Roth, Su.
    """
    if mu <= 0:
        return 0.0
    first = norm.cdf(-epsilon / mu + mu / 2)
    second = math.exp(epsilon + norm.logcdf(-epsilon / mu - mu / 2))
    return float(max(first - second, 0.0))


def gdp_epsilon(mu: float, delta: float) -> float:
    """Return the epsilon of mu-GDP at `delta`: 0 for mu <= 0, infinity for mu above 200."""
    if mu <= 0 or gdp_delta(0.0, mu) <= delta:
        return 0.0
    if mu > MOST_MU:
        return math.inf
    # Beyond mu^2 / 2 + mu z the first term alone is below delta.
    high = mu * mu / 2 + mu * float(norm.isf(delta)) + 1
    return float(brentq(lambda e: gdp_delta(e, mu) - delta, 0.0, high, xtol=1e-9))


def clopper_pearson_upper(errors: int, trials: int, confidence: float) -> float:
    """Return the upper limit of the probability of an error, exact for a binomial count."""
    if errors >= trials:
        return 1.0
    return float(beta.ppf(confidence, errors + 1, trials - errors))


def threshold_mu(
    inside: np.ndarray, outside: np.ndarray, threshold: float, confidence: float = CONFIDENCE
) -> float:
    """Return a lower bound on mu from the two error rates at one threshold.

    mu >= Phi^-1(1 - FPR) - Phi^-1(FNR) with both rates at their Clopper-Pearson limits (Nasr et al.,
    USENIX Security 2023, arXiv 2302.07956, section 4). The threshold must be fixed before the scores
    are seen. At least 0.
    """
    each = 1 - (1 - confidence) / 2
    false_in = clopper_pearson_upper(int((outside > threshold).sum()), len(outside), each)
    false_out = clopper_pearson_upper(int((inside <= threshold).sum()), len(inside), each)
    return max(0.0, float(norm.isf(false_in) - norm.ppf(false_out)))


def step_mu(rate: float, noise: float, steps: int) -> float:
    """Return the mean shift, in deviations of the noise, of a canary's score over Poisson steps.

    The score sums T steps of 1[drawn] + N(0, sigma^2): its mean is q T if the canary is in, 0 if not,
    and its deviation without the canary sigma sqrt(T), so mu = q sqrt(T) / sigma. The limit of the
    mechanism itself is q sqrt(T (exp(1 / sigma^2) - 1)) (Bu et al., HDSR 2020, arXiv 1911.11607),
    larger, as the sum throws away which step looked suspicious; at sigma >= 2 by at most 7 %.
    """
    return rate * math.sqrt(steps) / noise if noise > 0 else math.inf


def limit_mu(rate: float, noise: float, steps: int) -> float:
    """Return the central limit's mu of T Poisson-subsampled Gaussian steps; exact at rate 1."""
    if noise <= 0:
        return math.inf
    if rate >= 1:
        return math.sqrt(steps) / noise
    if noise**-2 > 2 * math.log(MOST_MU):
        return math.inf
    return rate * math.sqrt(steps * math.expm1(noise**-2))
