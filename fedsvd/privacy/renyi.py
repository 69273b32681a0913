"""Epsilon by Renyi divergences of the sampled Gaussian mechanism (Mironov et al., 2019).

With A(a) = E[(p / p0)^a] over the noise p0 and the sampled p, a step has Renyi divergence
log A(a) / (a - 1) of order a, for whole a by the sum of section 3.3, for others by its two series.
The arithmetic is that of Opacus's accountant, without its import of everything (three seconds) and
with two additions: orders beyond 63 where the best one lies there, and an integral in place of a
series that converges slowly.
"""

import functools
import math
from collections.abc import Sequence

import numpy as np
from scipy.special import binom, gammaln, log_ndtr, logsumexp

Event = tuple[float, float, int]

WHOLE_ORDERS = (*range(2, 32), *range(32, 65, 4), 128, 256)  # quick to compute
PARTS = tuple(1 + x / 10 for x in range(1, 100))  # with whole ones among them
USUAL_ORDERS = (*PARTS, *range(12, 64))
MOST_TERMS = 200  # of a series
SMALLEST_NOISE = 0.03  # below, an integral takes too many points
MOST_STEPS = 10**6  # beyond, what rounding and the series leave out may add up to something
LARGEST_ORDER = 2**17


def epsilon(
    events: Sequence[Event], delta: float, orders: tuple[float, ...] | None = None
) -> float:
    """Return the least epsilon over `orders`, by default Opacus's and larger ones where they help.

    Conversion: Balle et al., 2020, theorem 21. Infinity if no order is bounded.
    """
    return _epsilon(tuple(events), delta, orders)


@functools.lru_cache(maxsize=65536)
def _epsilon(events: tuple[Event, ...], delta: float, orders: tuple[float, ...] | None) -> float:
    best, value = _best(events, delta, orders or USUAL_ORDERS)
    if orders is None and (best == USUAL_ORDERS[-1] or math.isinf(value)):
        value = min(value, _beyond(events, delta, value))
    return max(0.0, value) if not math.isnan(value) else math.inf


def _best(events: Sequence[Event], delta: float, orders: Sequence[float]) -> tuple[float, float]:
    divergences = np.zeros(len(orders))
    for sigma, rate, steps in events:
        divergences = divergences + np.array(_divergences(sigma, rate, steps, orders)) * steps
    at = np.array(orders)
    found = divergences - (np.log(delta) + np.log(at)) / (at - 1) + np.log((at - 1) / at)
    if np.isnan(found).all():
        return orders[0], math.inf
    best = int(np.nanargmin(found))
    return orders[best], float(found[best])


def _divergences(sigma: float, rate: float, steps: int, orders: Sequence[float]) -> list[float]:
    """Return a step's divergences; infinity where one takes too long to find."""
    if rate == 1:
        return [order / (2 * sigma**2) for order in orders]
    found = []
    for order in orders:
        if float(order).is_integer():
            whole = _whole if steps <= MOST_STEPS else _large
            log_a = whole(rate, sigma, int(order))
        else:
            log_a = _between(rate, sigma, order, steps)
        found.append(log_a / (order - 1))
    return found


def _whole(q: float, sigma: float, order: int) -> float:
    log_a = -math.inf
    for i in range(order + 1):
        chosen = math.log(binom(order, i)) + i * math.log(q) + (order - i) * math.log(1 - q)
        log_a = _add(log_a, chosen + (i * i - i) / (2 * (sigma**2)))
    return float(log_a)


def _between(q: float, sigma: float, order: float, steps: int) -> float:
    """Return log A by Opacus's series where few terms are enough, otherwise by the integral."""
    if steps <= MOST_STEPS and sigma > SMALLEST_NOISE:
        try:
            return _series(q, sigma, order)
        except (ArithmeticError, ValueError):
            pass
    return _integral(q, sigma, order)


def _integral(q: float, sigma: float, order: float) -> float:
    """Return log A by the trapezoidal rule, whose error falls as exp(-2 pi d / step).

    d = pi sigma^2 is how far from the real line the integrand is smooth.
    """
    if sigma <= SMALLEST_NOISE:
        return math.inf  # too many points; epsilon is in the thousands
    step = min(sigma / 20, sigma**2 / 2)
    x = np.arange(-10 * sigma, order + 10 * sigma, step)
    ratio = np.logaddexp(math.log1p(-q), math.log(q) + (2 * x - 1) / (2 * sigma**2))
    log_p0 = -((x / sigma) ** 2) / 2 + math.log(step / sigma / math.sqrt(2 * math.pi))
    return max(0.0, float(logsumexp(log_p0 + order * ratio)))


def _series(q: float, sigma: float, order: float) -> float:
    below = above = -math.inf  # integrals over (-inf, z] and [z, inf)
    z = sigma**2 * math.log(1 / q - 1) + 0.5
    for i in range(MOST_TERMS):
        factor = binom(order, i)
        size, j = math.log(abs(factor)), order - i
        t0 = size + i * math.log(q) + j * math.log(1 - q)
        t1 = size + j * math.log(q) + i * math.log(1 - q)
        e0 = math.log(0.5) + _log_erfc((i - z) / (math.sqrt(2) * sigma))
        e1 = math.log(0.5) + _log_erfc((z - j) / (math.sqrt(2) * sigma))
        s0 = t0 + (i * i - i) / (2 * (sigma**2)) + e0
        s1 = t1 + (j * j - j) / (2 * (sigma**2)) + e1
        join = _add if factor > 0 else _subtract
        below, above = join(below, s0), join(above, s1)
        if max(s0, s1) < -30:
            return _add(below, above)
    raise ArithmeticError(f"a series of more than {MOST_TERMS} terms")


def _beyond(events: Sequence[Event], delta: float, value: float) -> float:
    """Return the least epsilon over whole orders from 64 on, until three in a row are no better."""
    best, worse, order = value, 0, 64.0
    while order <= LARGEST_ORDER and worse < 3:
        at = round(order)
        total = sum(_large(q, sigma, at) * steps for sigma, q, steps in events) / (at - 1)
        found = total - (math.log(delta) + math.log(at)) / (at - 1) + math.log((at - 1) / at)
        worse = 0 if found < best else worse + math.isfinite(best)
        best = min(best, found) if not math.isnan(found) else best
        order *= 2**0.25
    return best


def _large(q: float, sigma: float, order: int) -> float:
    """Return log A(order) by A - 1 = sum over i of P(i) (exp((i^2 - i) / 2 sigma^2) - 1).

    P is binomial; no term is negative, so a small A - 1 keeps its digits.
    """
    if q == 1:
        return order * (order - 1) / (2 * sigma**2)
    i = np.arange(2, order + 1, dtype=np.float64)
    log_p = gammaln(order + 1) - gammaln(i + 1) - gammaln(order - i + 1)
    log_p += i * math.log(q) + (order - i) * math.log1p(-q)
    rise = (i * i - i) / (2 * sigma**2)
    above = float(logsumexp(log_p + rise + np.log(-np.expm1(-rise))))
    return float(np.logaddexp(0.0, above))


def _add(x: float, y: float) -> float:
    low, high = min(x, y), max(x, y)
    return high if low == -math.inf else math.log1p(math.exp(low - high)) + high


def _subtract(x: float, y: float) -> float:
    if x < y:
        raise ValueError("the series is not exact enough")
    if y == -math.inf:
        return x
    if x == y:
        return -math.inf
    try:
        return math.log(math.expm1(x - y)) + y
    except OverflowError:
        return x


def _log_erfc(x: float) -> float:
    return float(math.log(2) + log_ndtr(-x * 2**0.5))
