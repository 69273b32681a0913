"""Epsilon of composed Poisson-subsampled Gaussian steps, by three accountants.

Neighbours are data sets that differ by adding or removing one unit (an example, or a client). A step
is N(0, sigma^2 C^2) noise on a sum of contributions of norm at most C, each included with probability
q; q = 1 is the plain Gaussian mechanism.
"""

import functools
import math
import warnings
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass

# (noise multiplier sigma, sample rate q, steps)
Event = tuple[float, float, int]

RELATIVE_ERROR = 0.004  # of epsilon, where an accountant's discretisation is ours to choose
WHOLE_ORDERS = (*range(2, 32), *range(32, 65, 4), 128, 256)  # of RDP; quick to compute
MOST_POINTS = 2**25  # of a discretised privacy loss: 256 MiB an array


@dataclass(frozen=True)
class Cost:
    """An epsilon, and the accountant that gave it (RDP where another one failed)."""

    epsilon: float
    accountant: str


def epsilon(events: Iterable[Event], delta: float, accountant: str) -> float:
    """Return the epsilon at `delta` of the composition of `events`; see `cost`."""
    return cost(events, delta, accountant).epsilon


def cost(events: Iterable[Event], delta: float, accountant: str) -> Cost:
    """Return what the composition of `events` costs at `delta`.

    `accountant` is "prv" (Gopi et al., NeurIPS 2021; its upper bound) or "rdp" (Mironov et al.,
    2019), both Opacus's, or "pld" (Doroshenko et al., PoPETs 2022; pessimistic), Google's. Where one
    fails, as PRV can at extreme settings, RDP answers and a warning says so. No events cost 0, a
    step without noise costs infinity. Answers are kept: the same question is not computed twice.
    """
    merged = merge(events)
    if not merged:
        return Cost(0.0, accountant)
    if any(sigma <= 0 for sigma, _, _ in merged):
        return Cost(math.inf, accountant)
    return _cost(merged, delta, accountant)


def merge(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return the events with the steps of equal ones added up, in a fixed order."""
    steps_of: dict[tuple[float, float], int] = {}
    for sigma, rate, steps in events:
        if steps > 0:
            steps_of[sigma, rate] = steps_of.get((sigma, rate), 0) + steps
    return tuple((sigma, rate, steps) for (sigma, rate), steps in sorted(steps_of.items()))


@functools.lru_cache(maxsize=65536)
def _cost(events: tuple[Event, ...], delta: float, accountant: str) -> Cost:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # advice on RDP orders, numpy's overflows
        try:
            value = ACCOUNTANTS[accountant](events, delta)
        except (ArithmeticError, RuntimeError, ValueError, MemoryError):
            value = math.nan
    if math.isfinite(value) and value >= 0:
        return Cost(value, accountant)
    if accountant == "rdp":
        return Cost(math.inf, "rdp")
    warnings.warn(
        f"the {accountant} accountant failed at {events}; the RDP bound stands in", stacklevel=3
    )
    return _cost(events, delta, "rdp")


def _rdp(events: Sequence[Event], delta: float, orders: Sequence[float] | None = None) -> float:
    from opacus.accountants import RDPAccountant

    ledger = RDPAccountant()
    ledger.history = list(events)
    return float(ledger.get_epsilon(delta, alphas=orders))


def _prv(events: tuple[Event, ...], delta: float) -> float:
    """Return PRV's upper bound, its discretisation chosen so that the bound is 0.4 % above at most.

    With a fixed one, as in Opacus's accountant, a small epsilon would be swamped and a large one
    take minutes. RDP, never below, says how large epsilon can be; where RDP is loose, the first
    answer says it better.
    """
    error = min(0.5, RELATIVE_ERROR * _rdp(events, delta, WHOLE_ORDERS))
    while True:
        value = _prv_bound(events, delta, error)
        if not error > 2 * RELATIVE_ERROR * value > 0:
            return value
        error = max(RELATIVE_ERROR * value, error / 20)


def _prv_bound(events: tuple[Event, ...], delta: float, error: float) -> float:
    """Return epsilon + at most `error`, from the parts of Opacus's PRV accountant.

    As there, the domain's half-width L is 3 above the RDP epsilons at remark 5.6's failure
    probabilities; RDP over whole orders alone is as valid a bound and fifty times quicker.
    """
    from opacus.accountants.analysis import prv

    delta_error, composed = delta / 1000, sum(steps for _, _, steps in events)
    L = max(error, _rdp(events, delta_error / 4, WHOLE_ORDERS))
    for sigma, rate, _ in events:
        L = max(L, _rdp([(sigma, rate, 1)], delta_error / (8 * composed), WHOLE_ORDERS))
    if L > 500:
        raise OverflowError("PRV works with exp(epsilon) in float64")
    mesh = error / math.sqrt(composed * math.log(12 / delta_error) / 2)
    if 2 * (L + 3) / mesh > MOST_POINTS:
        raise MemoryError(f"PRV would take {2 * (L + 3) / mesh:.2g} points")
    domain = prv.Domain.create_aligned(-L - 3, L + 3, mesh)
    parts = []
    for sigma, rate, _ in events:
        variable = prv.PoissonSubsampledGaussianPRV(rate, sigma)
        truncated = prv.TruncatedPrivacyRandomVariable(variable, domain.t_min, domain.t_max)
        parts.append(prv.discretize(truncated, domain))
    whole = prv.compose_heterogeneous(parts, [steps for _, _, steps in events])
    return float(whole.compute_epsilon(delta, delta_error, error)[2])


def _pld(events: Sequence[Event], delta: float) -> float:
    import dp_accounting as dpa
    from dp_accounting.pld import PLDAccountant

    ledger = PLDAccountant()
    for sigma, rate, steps in events:
        gaussian = dpa.GaussianDpEvent(sigma)
        ledger.compose(dpa.PoissonSampledDpEvent(rate, gaussian) if rate < 1 else gaussian, steps)
    return float(ledger.get_epsilon(delta))


ACCOUNTANTS: dict[str, Callable[[tuple[Event, ...], float], float]] = {
    "prv": _prv,
    "rdp": _rdp,
    "pld": _pld,
}
