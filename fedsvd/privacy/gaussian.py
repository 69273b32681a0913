"""The Gaussian mechanism in closed form."""

import math
from collections.abc import Iterable

from scipy.special import erfcx, log_ndtr, ndtr

SLACK = 1e-12  # relative; what rounding may have taken is given back
SMALL = 0.01  # mu below which two nearly equal values of M are not subtracted
NODES = ((-0.7745966692414834, 5 / 18), (0.0, 8 / 18), (0.7745966692414834, 5 / 18))  # Gauss


def composed(terms: Iterable[tuple[float, int]]) -> float:
    """Return mu = sqrt(sum of steps / sigma^2) of Gaussian steps given as (sigma, steps).

    Steps without sampling compose to one Gaussian mechanism exactly, whose two distributions are
    N(0, 1) and N(mu, 1) (Dong, Roth and Su, 2019, corollary 2).
    """
    return math.sqrt(math.fsum(steps / sigma / sigma for sigma, steps in terms))


def log_delta(mu: float, x: float) -> float:
    """Return log delta at epsilon = mu^2 / 2 + mu x of the mechanism N(0, 1) against N(mu, 1).

    Balle and Wang, 2018, theorem 8: delta = Phi(-x) - exp(epsilon) Phi(-x - mu). With the density
    phi and Mills' ratio M this is phi(x) (M(x) - M(x + mu)), which neither overflows nor cancels.
    """
    log_phi = -0.5 * x * x - 0.5 * math.log(2 * math.pi)
    if x < 0 and mu >= SMALL:
        return math.log(ndtr(-x) - math.exp(log_phi) * _mills(x + mu))
    if x > 1e6:
        return log_ndtr(-x)
    if mu >= SMALL:
        fall = _mills(x) - _mills(x + mu)
    else:  # -M' = 1 - x M, integrated over [x, x + mu]
        points = ((x + mu * (1 + node) / 2, weight) for node, weight in NODES)
        fall = mu * sum(weight * (1 - at * _mills(at)) for at, weight in points)
    return log_phi + math.log(fall)


def epsilon(mu: float, delta: float) -> float:
    """Return the least epsilon at `delta`, from above, to a relative 1e-12."""
    low, high = -mu / 2, 40.0  # epsilon 0, and a tail of exp(-800)
    goal = math.log(delta)
    if math.isinf(mu * mu):
        return math.inf
    if mu == 0 or log_delta(mu, low) <= goal:
        return 0.0
    for _ in range(200):
        middle = (low + high) / 2
        if middle in (low, high):
            break
        if log_delta(mu, middle) > goal:
            low = middle
        else:
            high = middle
    return max(0.0, (mu * mu / 2 + mu * high) * (1 + SLACK) + 1e-15 * mu * (1 + abs(high)))


def _mills(x: float) -> float:
    return math.sqrt(math.pi / 2) * float(erfcx(x / math.sqrt(2)))
