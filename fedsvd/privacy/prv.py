"""Epsilon by discretised privacy random variables (Gopi, Lee and Wutschitz, NeurIPS 2021).

The arithmetic is that of Opacus's PRV accountant, without its import of everything (three seconds),
with a mesh made for the question and with limits beyond which it does not answer.
"""

import itertools
import math
from collections.abc import Sequence

import numpy as np
from scipy.fft import irfft, rfft
from scipy.integrate import quad
from scipy.signal import convolve
from scipy.special import erfc

from fedsvd.privacy import renyi
from fedsvd.privacy.renyi import WHOLE_ORDERS, Event

RELATIVE_ERROR = 0.004  # of epsilon
WORST_ERROR = 0.02  # where RELATIVE_ERROR would take too many points
MOST_POINTS = 2**19
# Rounding errors of the masses and of their Fourier transform show below a delta of about 1e-11, or
# of about 1e-13 times the steps; these limits are a hundred times larger.
LEAST_DELTA, LEAST_DELTA_A_STEP = 1e-9, 1e-11
LEAST_RATE = 1e-6  # below, exp(t) - 1 + q loses its digits
SQRT2 = np.sqrt(2)


def epsilon(events: Sequence[Event], delta: float) -> float:
    """Return an upper bound on epsilon, about 0.4 % above it (2 % where memory is the limit).

    With a fixed mesh, as in Opacus's accountant, a small epsilon would be swamped and a large one
    take minutes. RDP, never below, says how large epsilon can be; where RDP is loose, the first
    answer says it better. Raises ArithmeticError with the reason where the method does not hold.
    """
    least = max(LEAST_DELTA, LEAST_DELTA_A_STEP * sum(steps for _, _, steps in events))
    if delta < least:
        raise ArithmeticError(f"delta is below {least:.2g}, where rounding errors show")
    if min(rate for _, rate, _ in events) < LEAST_RATE:
        raise ArithmeticError(f"a sample rate is below {LEAST_RATE:g}, where rounding errors show")
    error = min(0.5, RELATIVE_ERROR * renyi.epsilon(events, delta, WHOLE_ORDERS))
    while True:
        value, reached = bound(events, delta, error)
        if not reached > 2 * RELATIVE_ERROR * value > 0:
            return max(0.0, value)
        if reached > error:
            _check(reached, value)
            return max(0.0, value)
        error = max(RELATIVE_ERROR * value, error / 20)


@np.errstate(all="ignore")  # log 0 at q = 1, tails that overflow: both end in a mass of 0
def bound(events: Sequence[Event], delta: float, error: float) -> tuple[float, float]:
    """Return epsilon + at most e, and e: `error`, or what MOST_POINTS points allow.

    The domain's half-width L is 3 above the RDP epsilons at remark 5.6's failure probabilities;
    RDP over whole orders alone is as valid a bound and fifty times quicker.
    """
    delta_error, composed = delta / 1000, sum(steps for _, _, steps in events)
    L = max(error, renyi.epsilon(events, delta_error / 4, WHOLE_ORDERS))
    for sigma, rate, _ in events:
        one = [(sigma, rate, 1)]
        L = max(L, renyi.epsilon(one, delta_error / (8 * composed), WHOLE_ORDERS))
    if not L <= 500:
        raise ArithmeticError("epsilon is above 500, where exp(epsilon) leaves float64")
    spread = math.sqrt(composed * math.log(12 / delta_error) / 2)
    reached = 2 * (L + 3) * spread / (MOST_POINTS - 4)
    if reached > error:
        _check(reached, renyi.epsilon(events, delta))  # before it takes the time
        error = reached
    low, high, points = _domain(L + 3, error / spread)
    parts, shifts = [], []
    for sigma, rate, steps in events:
        masses, shift = _discretise(rate, sigma, low, high, points)
        parts.append(_compose(masses, steps))
        shifts.append((shift, shift * (steps - 1)))
    while len(parts) > 1:  # neighbours first, as in Opacus
        odd = [parts.pop()] if len(parts) % 2 else []
        pairs = zip(parts[::2], parts[1::2], strict=True)
        parts = odd + [convolve(a, b, mode="same") for a, b in pairs]
    for shift, further in [*shifts[:1], *((a + b, 0.0) for a, b in shifts[1:])]:
        low, high = low + shift + further, high + shift + further
    t = np.linspace(low, high, points)
    return _read(t, parts[0], delta - delta_error) + error, error


def _check(error: float, value: float) -> None:
    if error > WORST_ERROR * value:
        raise ArithmeticError(f"its mesh would take more than {MOST_POINTS:,} points")


def _domain(half: float, mesh: float) -> tuple[float, float, int]:
    """Return ends and number, which is even, of the points that cover [-half, half]."""
    low, high = float(np.floor(-half / mesh) * mesh), float(np.ceil(half / mesh) * mesh)
    points = int(np.round((high - low) / mesh)) + 1
    return (low, high + mesh, points + 1) if points % 2 else (low, high, points)


def _discretise(
    q: float, sigma: float, low: float, high: float, points: int
) -> tuple[np.ndarray, float]:
    """Return the mass of each cell and the shift that keeps the mean, of the truncated loss."""
    mesh = (high - low) / (points - 1)
    before = _cdf(low, q, sigma)
    inside = _cdf(high, q, sigma) - before

    def cdf(t):  # type: ignore[no-untyped-def]
        within = np.where(t < high, (_cdf(t, q, sigma) - before) / inside, 1.0)
        return np.where(t < low, 0.0, within)

    t = np.linspace(low, high, points)
    masses = cdf(t + mesh / 2) - cdf(t - mesh / 2)
    ends = int(np.log10(np.abs(low))), int(np.log10(high))
    negative, positive = np.logspace(ends[0], -5, 10), np.logspace(-5, ends[1], 10)
    cuts = np.concatenate([[low], -negative, [0], positive, [high]])
    mean = 0.0
    for left, right in itertools.pairwise(cuts):
        integral, _ = quad(cdf, left, right, limit=500)
        mean += right * cdf(right) - left * cdf(left) - integral
    shift = float(mean - np.dot(t, masses))
    if not abs(shift) < mesh / 2:
        raise ArithmeticError("the mean of the discretised loss is too far from its own")
    return masses, shift


def _cdf(t, q: float, sigma: float):  # type: ignore[no-untyped-def]
    """Return the distribution of the loss of one step, proposition B.4 of the paper."""
    above = t > np.log(1 - q)
    z = np.log(np.where(above, (np.exp(t) + q - 1) / q, 1))
    without = erfc((2 * z * sigma**2 + 1) / (2 * SQRT2 * sigma)) / 2
    found = -q * erfc((2 * z * sigma**2 - 1) / (2 * SQRT2 * sigma)) / 2 - (1 - q) * without + 1.0
    return np.where(above, found, 0.0)


def _compose(masses: np.ndarray, steps: int) -> np.ndarray:
    composed = irfft(rfft(masses) ** steps)
    moved = steps - 1 + (len(composed) // 2 if steps % 2 == 0 else 0)
    return np.roll(composed, moved)


def _read(t: np.ndarray, masses: np.ndarray, delta: float) -> float:
    """Return the epsilon at which the hockey-stick divergence of the discretised loss is delta."""
    d1 = np.flip(np.flip(masses).cumsum())
    d2 = np.flip(np.flip(masses * np.exp(-t)).cumsum())
    at = int(np.searchsorted(np.exp(t) * d2 - d1, -delta, side="left"))
    if at <= 0:
        raise ArithmeticError("no epsilon of its domain has this delta")
    return float(np.log((d1[at] - delta) / d2[at]))
