"""Epsilon of composed Poisson-subsampled Gaussian steps, by three accountants and a closed form.

Neighbours are data sets that differ by adding or removing one unit (an example, or a client). A step
is N(0, sigma^2 C^2) noise on a sum of contributions of norm at most C, each included with probability
q; q = 1 is the plain Gaussian mechanism. Every answer is an upper bound. Time and memory are bounded
by limits on the accountants' meshes, whatever the question: see prv.py, pld.py and renyi.py.
"""

import functools
import math
import warnings
from collections.abc import Iterable
from dataclasses import dataclass

from fedsvd.privacy import gaussian, pld, prv, renyi

# (noise multiplier sigma, sample rate q, steps)
Event = tuple[float, float, int]

ACCOUNTANTS = ("prv", "rdp", "pld")  # that can be chosen
STAND_INS = ("prv", "pld", "rdp")  # who answers where an earlier one fails
CLOSED_FORM = "gaussian"  # where nothing is sampled
UNSAMPLED = "gaussian without sampling"  # stands in where no stand-in is below it


@dataclass(frozen=True)
class Cost:
    """An epsilon, who gave it, and why those who were asked before could not.

    `accountant` is the chosen one, "gaussian" for the closed form, or a stand-in; `failed` holds
    (accountant, reason) pairs.
    """

    epsilon: float
    accountant: str
    failed: tuple[tuple[str, str], ...] = ()


def epsilon(events: Iterable[Event], delta: float, accountant: str) -> float:
    """Return the epsilon at `delta` of the composition of `events`; see `cost`."""
    return cost(events, delta, accountant).epsilon


def cost(events: Iterable[Event], delta: float, accountant: str) -> Cost:
    """Return what the composition of `events` costs at `delta`.

    `accountant` is "prv" (Gopi et al., NeurIPS 2021; its upper bound), "pld" (Doroshenko et al.,
    PoPETs 2022; pessimistic) or "rdp" (Mironov et al., 2019). Where nothing is sampled the first
    two give the closed form of Balle and Wang (2018). Where one fails, the next of PRV, PLD and RDP
    answers and a warning says so; a bound above RDP's is a failure, as its mesh was too coarse. A
    stand-in is never above the closed form of the same steps without sampling. No events cost 0, a
    step without noise costs infinity. The same question is not computed twice.
    """
    merged = merge(events)
    if not merged:
        return Cost(0.0, accountant)
    if any(sigma <= 0 for sigma, _, _ in merged):
        return Cost(math.inf, accountant)
    found = _cost(merged, delta, accountant)
    for name, reason in found.failed:
        warnings.warn(
            f"the {name} accountant failed at {merged}, delta {delta:g}: {reason}; the "
            f"{found.accountant.upper()} bound stands in",
            stacklevel=2,
        )
    return found


def merge(events: Iterable[Event]) -> tuple[Event, ...]:
    """Return the events with the steps of equal ones added up, in a fixed order."""
    steps_of: dict[tuple[float, float], int] = {}
    for sigma, rate, steps in events:
        if steps > 0:
            steps_of[sigma, rate] = steps_of.get((sigma, rate), 0) + steps
    return tuple((sigma, rate, steps) for (sigma, rate), steps in sorted(steps_of.items()))


@functools.lru_cache(maxsize=65536)
def _cost(events: tuple[Event, ...], delta: float, accountant: str) -> Cost:
    if accountant != "rdp" and all(rate == 1 for _, rate, _ in events):
        return Cost(_unsampled(events, delta), CLOSED_FORM)
    ceiling = _ceiling(events, delta)
    if ceiling == 0 and accountant != "rdp":
        return Cost(0.0, accountant)
    failed = []
    for name in (accountant, *STAND_INS[STAND_INS.index(accountant) + 1 :]):
        found = _ask(name, events, delta)
        if isinstance(found, str):
            failed.append((name, found))
        elif name != "rdp" and found > ceiling * (1 + 1e-9):
            failed.append((name, "its mesh is too coarse here: its bound is above RDP's"))
        elif not failed:
            return Cost(found, name)
        else:
            break
    unsampled = _unsampled(events, delta)
    if isinstance(found, float) and found <= unsampled:
        return Cost(found, name, tuple(failed))
    return Cost(unsampled, UNSAMPLED, tuple(failed))


def _ceiling(events: tuple[Event, ...], delta: float) -> float:
    """Return an RDP bound: over few orders, unless epsilon is so small that these end."""
    quick = _ask("rdp", events, delta, renyi.WHOLE_ORDERS)
    found = quick if isinstance(quick, float) and quick > 0.1 else _ask("rdp", events, delta)
    return found if isinstance(found, float) else math.inf


@functools.lru_cache(maxsize=65536)
def _ask(name: str, events: tuple[Event, ...], delta: float, *more: object) -> float | str:
    """Return an accountant's epsilon, or why it has none."""
    ask = {"prv": prv.epsilon, "pld": pld.epsilon, "rdp": renyi.epsilon}[name]
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")  # numpy's overflows
            value = ask(events, delta, *more)
    except (OverflowError, ZeroDivisionError, FloatingPointError):
        return "numbers leave the range of float64"
    except (ArithmeticError, RuntimeError, ValueError, MemoryError) as error:
        return str(error) or type(error).__name__
    if math.isfinite(value) and value >= 0:
        return float(value)
    return "no finite bound"


def _unsampled(events: tuple[Event, ...], delta: float) -> float:
    """Return the closed form of the events, all examples taken in every step.

    That is never below what sampling gives: a mixture of two pairs of distributions is no easier to
    tell apart than the pairs (hockey-stick divergences are jointly convex).
    """
    mu = gaussian.composed((sigma, steps) for sigma, _, steps in events)
    return gaussian.epsilon(mu, delta)
