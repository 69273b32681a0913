"""Epsilon of composed Poisson-subsampled Gaussian steps, and the noise that meets a budget."""

import functools
import math
import warnings
from collections.abc import Sequence

from fedsvd.errors import InputError

# (noise multiplier, sample rate, steps); consecutive equal ones should be merged.
Event = tuple[float, float, int]


def epsilon(events: Sequence[Event], delta: float, accountant: str) -> float:
    """Return the epsilon at `delta` of the events' composition, under add-or-remove-one neighbours.

    `accountant` is "prv" (Gopi et al., 2021; its upper bound) or "rdp" (Mironov et al., 2019), both
    Opacus's. Where PRV fails, as it can at extreme settings, RDP answers, and a warning says so.
    No events cost 0; a step without noise costs infinity.
    """
    merged: dict[tuple[float, float], int] = {}
    for sigma, rate, steps in events:
        if steps > 0:
            merged[sigma, rate] = merged.get((sigma, rate), 0) + steps
    if not merged:
        return 0.0
    if any(sigma <= 0 for sigma, _ in merged):
        return math.inf
    return _epsilon(tuple((s, q, n) for (s, q), n in sorted(merged.items())), delta, accountant)


@functools.lru_cache(maxsize=65536)
def _epsilon(events: tuple[Event, ...], delta: float, accountant: str) -> float:
    from opacus.accountants import create_accountant

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on RDP orders and on numpy's overflow
        ledger = create_accountant(accountant)
        ledger.history = list(events)
        try:
            value = float(ledger.get_epsilon(delta))
        except (RuntimeError, ValueError, OverflowError, FloatingPointError, MemoryError):
            value = math.nan
    if math.isfinite(value) and value >= 0:
        return value
    if accountant == "rdp":
        return math.inf
    warnings.warn(
        f"the {accountant} accountant failed at {events}; the RDP bound stands in", stacklevel=2
    )
    return _epsilon(events, delta, "rdp")


@functools.lru_cache(maxsize=65536)
def noise_multiplier(
    target: float, delta: float, sample_rate: float, steps: int, accountant: str
) -> float:
    """Return the least noise multiplier, to 0.5 % in epsilon, whose epsilon is at most `target`.

    `steps` Poisson-subsampled Gaussian steps at `sample_rate` are composed. The search keeps a
    bracket and steps by the secant of log epsilon over log sigma, about five evaluations; what is
    returned was itself evaluated and is at or below the target.

    Raises InputError if no noise multiplier up to 1e6 meets the target.
    """
    low, high = 0.0, math.inf  # epsilon(low) > target >= epsilon(high)
    sigma = max(0.4, sample_rate * math.sqrt(2 * steps * math.log(1.25 / delta)) / target)
    previous: tuple[float, float] | None = None
    for _ in range(100):
        cost = epsilon([(sigma, sample_rate, steps)], delta, accountant)
        if cost <= target:
            high = sigma
            if cost >= 0.995 * target:
                return sigma
        else:
            low = sigma
        if low > 1e6:
            break
        slope = -1.0
        if previous and math.isfinite(cost) and cost > 0 and sigma != previous[0]:
            rise = math.log(cost / previous[1]) / math.log(sigma / previous[0])
            slope = min(rise, -0.2)
        if math.isfinite(cost) and cost > 0:
            previous = (sigma, cost)
            guess = sigma * (0.998 * target / cost) ** (1 / slope)
        else:
            guess = 2 * sigma
        inside = low < guess < high
        sigma = guess if inside else (2 * low if math.isinf(high) else (low + high) / 2)
        if math.isfinite(high) and high - low < 1e-6 * high:
            return high
    if math.isfinite(high):
        return high
    raise InputError(
        f"privacy.epsilon: {target} cannot be met with sample rate {sample_rate:.4g} over {steps} "
        "steps; raise epsilon, or lower rounds or training.local_steps"
    )
