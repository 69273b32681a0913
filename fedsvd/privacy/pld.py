"""Epsilon by discretised privacy loss distributions, pessimistic, with Google's dp-accounting.

Doroshenko, Ghazi, Kamath, Kumar and Manurangsi (PoPETs 2022): the loss is moved to the points of a
mesh so that no hockey-stick divergence becomes smaller. The mesh is chosen for the question here.
"""

import math
from collections.abc import Sequence

from fedsvd.privacy import renyi
from fedsvd.privacy.renyi import Event

INFLATION = 0.002  # of the loss's variance that the mesh may add
MOST_POINTS = 2**17  # of the composed loss
MOST_POINTS_A_STEP = 15_000  # of one step's loss: its points are found one by one
TAIL = 10.2  # deviations of the noise that a step's mesh covers: a mass of exp(-50)
LOST = 1e-15  # mass that dp-accounting moves to infinity when it composes
LEAST_DELTA, LEAST_DELTA_A_STEP = 1e-10, 1e-12  # see prv.py


def epsilon(events: Sequence[Event], delta: float) -> float:
    """Return an upper bound on epsilon; ArithmeticError with the reason where there is none.

    A mesh of width h adds at most h^2 / 4 to the variance of each step's loss, and half of that to
    its mean: h is as wide as that allows, or as MOST_POINTS and MOST_POINTS_A_STEP make it.
    """
    steps = sum(count for _, _, count in events)
    least = max(LEAST_DELTA, LEAST_DELTA_A_STEP * steps)
    if delta < least:
        raise ArithmeticError(f"delta is below {least:.2g}, where rounding errors show")
    bound = renyi.epsilon(events, delta)
    variance = math.fsum(n * math.log1p(q * q * math.expm1(s**-2)) for s, q, n in events)
    scale = max(math.sqrt(variance), bound / math.sqrt(8 * math.log(1 / delta)))
    mesh = math.sqrt(4 * INFLATION / steps) * min(scale, math.sqrt(bound))
    mesh = max(mesh, max(_width(s, q) for s, q, _ in events) / MOST_POINTS_A_STEP)
    for _ in range(5):
        found = _composed(events, mesh)
        if found is not None:
            value = float(found.get_epsilon_for_delta(delta))
            if not math.isfinite(value):
                raise ArithmeticError("too much of its mass is at an infinite loss")
            return value
        mesh *= 2
    raise ArithmeticError(f"its mesh would take more than {MOST_POINTS:,} points")


def _width(sigma: float, rate: float) -> float:
    """Return the length of the interval in which the loss of one step lies, but for its tails."""
    most = (2 * TAIL * sigma + 1) / (2 * sigma**2)
    if rate == 1:
        return 2 * TAIL / sigma
    highest = most + math.log(rate) if most > 700 else math.log1p(rate * math.expm1(most))
    lowest = math.log1p(rate * math.expm1(1 / (2 * sigma**2) - most))
    return max(highest - lowest, 1e-300)


def _composed(events: Sequence[Event], mesh: float):  # type: ignore[no-untyped-def]
    """Return the composed loss, or None if it would take too many points."""
    from dp_accounting.pld import privacy_loss_distribution as pld

    whole, points = None, 0
    for sigma, rate, count in events:
        if rate == 1:
            sigma, count = sigma / math.sqrt(count), 1
            if 2 * TAIL / sigma / mesh > MOST_POINTS_A_STEP:
                return None
        one = pld.from_gaussian_mechanism(
            sigma, value_discretization_interval=mesh, sampling_prob=rate
        )
        points += max(_points(one._pmf_remove, count), _points(one._pmf_add, count))
        if points > MOST_POINTS:
            return None
        composed = one.self_compose(count)
        whole = composed if whole is None else whole.compose(composed)
    return whole


def _points(pmf, count: int) -> int:  # type: ignore[no-untyped-def]
    """Return how many points dp-accounting keeps of `count` compositions of a loss."""
    from dp_accounting.pld import common

    probabilities = pmf.to_dense_pmf()._probs
    low, high = common.compute_self_convolve_bounds(probabilities, count, LOST)
    return max(high - low + 1, len(probabilities))
