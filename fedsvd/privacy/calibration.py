"""The least noise that meets a budget."""

import functools
import math
from collections.abc import Sequence

from fedsvd.errors import InputError
from fedsvd.privacy.accounting import epsilon

LOSS = 0.005  # share of the target that the search may leave unspent
USUAL, MOST = 8, 25  # evaluations: after the first number a coarser end is good enough
MOST_NOISE = 1e6
AIM = 1 - LOSS / 2


def noise_multipliers(
    target: float, delta: float, rates: Sequence[float], steps: int, accountant: str
) -> list[float]:
    """Return, for each sample rate, the least noise multiplier that keeps `steps` steps in budget.

    See `noise_multiplier`. Rates are solved in ascending order, each search starting where the two
    before point to (log sigma is smooth in log rate), which takes about one evaluation each.
    """
    found: dict[float, float] = {}
    curve: list[tuple[float, float]] = []  # (log rate, log sigma at which the search aims)
    for rate in sorted(set(rates)):
        start = None
        # From two rates far enough apart that no rounding shows in the slope.
        earlier = [point for point in curve if point[0] < curve[-1][0] - 0.03]
        if earlier:
            (q0, s0), (q1, s1) = earlier[-1], curve[-1]
            start = math.exp(s1 + (s1 - s0) / (q1 - q0) * (math.log(rate) - q1))
        sigma = noise_multiplier(target, delta, rate, steps, accountant, start)
        found[rate] = sigma
        cost = epsilon([(sigma, rate, steps)], delta, accountant)
        # Epsilon falls about as sigma rises: where in its tolerance the search ended is taken out.
        curve.append((math.log(rate), math.log(sigma) + math.log(cost / (AIM * target))))
    return [found[rate] for rate in rates]


@functools.lru_cache(maxsize=65536)
def noise_multiplier(
    target: float,
    delta: float,
    sample_rate: float,
    steps: int,
    accountant: str,
    start: float | None = None,
) -> float:
    """Return the least noise multiplier, to 0.5 % in epsilon, whose epsilon is at most `target`.

    `steps` Poisson-subsampled Gaussian steps at `sample_rate` are composed. The search keeps a
    bracket and steps by the secant of log epsilon over log sigma, about five evaluations from a
    rough guess or one from a good `start`; what is returned was itself evaluated and is at or below
    the target. Where accountants take over from one another epsilon jumps, and the search may end
    further below the target, after at most 25 evaluations.

    Raises InputError if no noise multiplier up to 1e6 meets the target.
    """
    low, high = 0.0, math.inf  # epsilon(low) > target >= epsilon(high)
    rough = max(0.4, sample_rate * math.sqrt(2 * steps * math.log(1.25 / delta)) / target)
    sigma = start or min(rough, MOST_NOISE)
    previous: tuple[float, float] | None = None
    for evaluation in range(MOST):
        cost = epsilon([(sigma, sample_rate, steps)], delta, accountant)
        if cost <= target:
            high = sigma
            if cost >= (1 - LOSS) * target:
                return sigma
        else:
            low = sigma
        if low >= MOST_NOISE:
            break
        if evaluation >= USUAL and high < 1.02 * low:
            return high
        slope = -1.0
        if previous and math.isfinite(cost) and cost > 0 and sigma != previous[0]:
            rise = math.log(cost / previous[1]) / math.log(sigma / previous[0])
            slope = min(rise, -0.2)
        if math.isfinite(cost) and cost > 0:
            previous = (sigma, cost)
            guess = sigma * (AIM * target / cost) ** (1 / slope)
        else:
            guess = 2 * sigma
        inside = low < guess < high
        sigma = guess if inside else _outside(low, high)
        if math.isinf(high):
            sigma = min(sigma, MOST_NOISE)
        if math.isfinite(high) and high - low < 1e-6 * high:
            return high
    if math.isfinite(high):
        return high
    raise InputError(
        f"privacy.epsilon: {target} cannot be met with sample rate {sample_rate:.4g} over {steps} "
        "steps; raise epsilon, or lower rounds or training.local_steps"
    )


def _outside(low: float, high: float) -> float:
    """Return where to look next if the secant points outside the bracket."""
    if math.isinf(high):
        return 4 * low
    return math.sqrt(low * high) if high > 4 * low > 0 else (low + high) / 2
