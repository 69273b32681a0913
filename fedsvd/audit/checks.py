"""Checks of what was seen of a run against its plan; each returns a verdict on one property."""

import math
from collections.abc import Callable, Iterator

import numpy as np
from scipy.stats import beta, binom, chi2, gamma, norm

from fedsvd.audit.estimators import CONFIDENCE, gaussian_mu, gdp_epsilon, threshold_mu
from fedsvd.audit.observed import Batches, Observed, Release
from fedsvd.audit.one_run import one_run_epsilon, one_run_mu
from fedsvd.audit.verdicts import LEVEL, SIGMAS, Verdict, beyond
from fedsvd.privacy.accounting import cost

NOISE_SLACK = 0.01  # relative, of a deviation over a whole run: rounding of parameters to float32
ONE_SLACK = 0.05  # of a single release
FEWEST = 10  # canaries on either side, for an estimate from scores


def run_checks(seen: Observed) -> list[Verdict]:
    """Return the verdicts on everything that a run shows."""
    checks: list[Callable[[Observed], Verdict]] = [
        check_noise, check_reuse, check_shift, check_rate, check_draws, check_mu, check_epsilon,
        check_ledger, check_target,
    ]  # fmt: skip
    return [check(seen) for check in checks]


def _verdict(name: str, flagged: bool | None, measured: str, theory: str) -> Verdict:
    return Verdict("pipeline", name, flagged, measured, theory)


def check_noise(seen: Observed) -> Verdict:
    """The deviation of the noise of all releases together, and of each."""
    name, found = "noise", [r for r in seen.releases if r.variance > 0]
    if not seen.alone or not found:
        return _verdict(name, None, "nothing", "the data's own gradients hide the noise")
    entries = sum(r.entries for r in found)
    total = math.sqrt(sum(r.energy / r.variance for r in found) / entries)
    low, high = (math.sqrt(x / entries) for x in chi2.ppf([LEVEL / 2, 1 - LEVEL / 2], entries))
    off = not low <= total <= high and abs(total - 1) > NOISE_SLACK
    odd = [r for r in found if _is_odd(r, len(found))]
    told = f"{total:.4f} of the planned deviation in {len(found)} releases"
    if odd:
        told += (
            f"; {len(odd)} of them off, as {_where(odd[0])}: "
            f"{math.sqrt(odd[0].energy / odd[0].variance / odd[0].entries):.3g}"
        )
    return _verdict(name, off or bool(odd), told, f"theory: 1, within {low:.4f} to {high:.4f}")


def _is_odd(release: Release, among: int) -> bool:
    limits = chi2.ppf([LEVEL / among / 2, 1 - LEVEL / among / 2], release.entries)
    ratio = math.sqrt(release.energy / release.variance / release.entries)
    inside = limits[0] <= release.energy / release.variance <= limits[1]
    return not inside and abs(ratio - 1) > ONE_SLACK


def _where(release: Release) -> str:
    who = "the server" if release.client < 0 else f"client {release.client}"
    return f"{who} in round {release.round}"


def check_reuse(seen: Observed) -> Verdict:
    """The correlation of what is left of any two releases without the canaries."""
    name, found = "noise is fresh", [r for r in seen.releases if r.kept.any()]
    if not seen.alone or len(found) < 2:
        return _verdict(name, None, "nothing", "it takes two releases of canaries and noise alone")
    rows = np.stack([r.kept for r in found]).astype(np.float32)
    rows /= np.linalg.norm(rows, axis=1, keepdims=True)
    alike = np.abs(np.triu(rows @ rows.T, 1))
    worst = float(alike.max())
    i, j = np.unravel_index(int(alike.argmax()), alike.shape)
    entries = int(min((r.kept != 0).sum() for r in found))
    pairs = len(found) * (len(found) - 1) // 2
    limit = float(norm.isf(LEVEL / pairs / 2)) / math.sqrt(entries) + 0.01
    told = (
        f"a largest correlation of {worst:.3f} between two of {len(found)} releases "
        f"({_where(found[int(i)])}, {_where(found[int(j)])})"
    )
    return _verdict(name, worst > limit, told, f"independent noise stays below {limit:.3f}")


def check_shift(seen: Observed) -> Verdict:
    """How far a canary of norm 100 C that was drawn moves the sum, in clips."""
    name, spread = "clipping", 1.0
    if not math.isfinite(seen.shift.value):
        return _verdict(name, None, "no canary that was drawn", "a contribution has norm C")
    if not seen.alone and len(seen.outside) > FEWEST:
        spread = max(1.0, float(seen.outside.std()))
    value, se = seen.shift.value, seen.shift.se * spread
    return _verdict(
        name, beyond(value, 1.0, se, 0.02),
        f"{value:.3f} (se {se:.3f}) of the planned contribution of an example of norm 100 C",
        "theory: 1: clipped to C, each for itself",
    )  # fmt: skip


def check_rate(seen: Observed) -> Verdict:
    """The share of units that was drawn in all steps, against the planned rate."""
    name = "sampling rate"
    trials = sum(b.units * len(b.drawn) for b in seen.batches)
    if not trials:
        return _verdict(name, None, "nothing", "no step was seen")
    drawn = sum(len(d) for b in seen.batches for d in b.drawn)
    # A sum of binomials of several rates spreads less than one of their mean.
    mean = sum(b.units * len(b.drawn) * b.rate for b in seen.batches) / trials
    low, high = binom.ppf([LEVEL / 2, 1 - LEVEL / 2], trials, mean)
    off = not low <= drawn <= high
    steps = sum(len(b.drawn) for b in seen.batches)
    return _verdict(
        name, off, f"{drawn / trials:.5f} over {steps} steps",
        f"the plan: {mean:.5f}, within {low / trials:.5f} to {high / trials:.5f}",
    )  # fmt: skip


def check_draws(seen: Observed) -> Verdict:
    """Whether batches are independent draws: sizes spread as binomial ones, none is repeated."""
    name, usual = "Poisson batches", [b for b in seen.batches if 0 < b.rate < 1]
    if not usual:
        return _verdict(name, None, "no sampling", "everybody takes part in every step")
    scores = np.array([
        (len(d) - b.units * b.rate) ** 2 / (b.units * b.rate * (1 - b.rate))
        for b in usual for d in b.drawn
    ])  # fmt: skip
    each = [2 + (1 / (b.rate * (1 - b.rate)) - 6) / b.units for b in usual for _ in b.drawn]
    spread, se = float(scores.mean()), math.sqrt(sum(each)) / len(scores)
    # A gamma distribution of the sum's mean and variance, which is chi-square's for large batches.
    low, high = gamma.ppf([LEVEL / 2, 1 - LEVEL / 2], se**-2, scale=se**2)
    uneven = not low <= spread <= high
    worst, where = _most_alike(usual)
    told = f"sizes with {spread:.2f} of the binomial variance"
    theory = f"theory: 1 (se {se:.2f})"
    if worst < LEVEL:
        told += f"; two batches of {where} share more than chance allows (p = {worst:.1g})"
    return _verdict(name, uneven or worst < LEVEL, told, f"{theory}, and no two batches alike")


def _most_alike(batches: list[Batches]) -> tuple[float, str]:
    """Return the smallest p of two steps' overlap, times the pairs that were compared, and whose."""
    best, where, pairs = 1.0, "", 0
    for b in batches:
        inside = np.zeros((len(b.drawn), b.units), np.float32)
        for row, drawn in zip(inside, b.drawn, strict=True):
            row[drawn] = 1
        shared = np.triu(inside @ inside.T, 1)
        pairs += len(b.drawn) * (len(b.drawn) - 1) // 2
        p = float(binom.sf(shared.max() - 1, b.units, b.rate**2)) if len(b.drawn) > 1 else 1.0
        best, where = (p, b.who) if p < best else (best, where)
    return min(1.0, best * max(pairs, 1)), where


def check_mu(seen: Observed) -> Verdict:
    """The Gaussian estimate of mu from the canaries' scores, against the plan's."""
    name = "canaries"
    if min(len(seen.inside), len(seen.outside)) < FEWEST:
        return _verdict(
            name, None, f"{len(seen.inside)} canaries in and {len(seen.outside)} out",
            f"an estimate takes {FEWEST} of each",
        )  # fmt: skip
    mu = gaussian_mu(seen.inside, seen.outside)
    flagged = not mu.value - seen.theory <= SIGMAS * mu.se
    return _verdict(
        name, flagged,
        f"mu = {mu.value:.3f} (se {mu.se:.3f}; {len(seen.inside)} canaries in, "
        f"{len(seen.outside)} out)",
        f"theory: {seen.theory:.3f}, and no more",
    )  # fmt: skip


def bounds(seen: Observed, confidence: float = CONFIDENCE) -> dict[str, float]:
    """Return lower bounds on epsilon from the canaries' scores, by the name of the method."""
    delta = seen.plan.delta
    assert delta is not None
    inside, outside = seen.inside, seen.outside
    if min(len(inside), len(outside)) < FEWEST:
        return {}
    middle = seen.theory / 2 if math.isfinite(seen.theory) else 0.0
    estimate = gaussian_mu(inside, outside).lower(confidence)
    threshold = threshold_mu(inside, outside, middle, confidence)
    found = {
        "Gaussian estimate": gdp_epsilon(seen.composed * estimate, delta),
        "one threshold, GDP": gdp_epsilon(seen.composed * threshold, delta),
        "one run, f-DP": gdp_epsilon(
            seen.composed * one_run_mu(inside, outside, confidence), delta
        ),
        "one run, (epsilon, delta)": one_run_epsilon(inside, outside, delta, confidence),
    }
    composed = _composed(seen, confidence)
    return found if composed is None else {"measured steps, composed": composed, **found}


def _composed(seen: Observed, confidence: float) -> float | None:
    """Return the accountant's epsilon of the steps seen, at measured noise, rate and contribution.

    Each of the three is at its confidence limit, at a third of what the bound may err. None where the
    noise cannot be seen alone.
    """
    plan, releases = seen.plan, [r for r in seen.releases if r.variance > 0]
    if not seen.alone or not releases or not math.isfinite(seen.shift.value):
        return None
    assert plan.delta is not None
    wrong = (1 - confidence) / 3
    entries = sum(r.entries for r in releases)
    energy = sum(r.energy / r.variance for r in releases)
    noise = math.sqrt(energy / chi2.ppf(wrong, entries))
    spread = math.sqrt(energy / entries)
    shift = seen.shift.value - float(norm.isf(wrong)) * seen.shift.se * spread
    trials = sum(b.units * len(b.drawn) for b in seen.batches)
    drawn = sum(len(d) for b in seen.batches for d in b.drawn)
    share = 1.0
    if trials:
        mean = sum(b.units * len(b.drawn) * b.rate for b in seen.batches) / trials
        share = float(beta.ppf(wrong, drawn, trials - drawn + 1)) / mean if drawn < trials else 1.0
    if shift <= 0:
        return 0.0
    taken: dict[int, int] = {}
    for (client, _), steps in seen.steps.items():
        taken[client] = taken.get(client, 0) + steps
    events = {
        (c.noise_multiplier * noise / shift, min(1.0, c.accounted_rate * share), taken[c.client])
        for c in plan.clients if c.client in taken
    }  # fmt: skip
    by = plan.accountant or "prv"
    return max((cost([e], plan.delta, by).epsilon for e in events), default=0.0)


def check_epsilon(seen: Observed) -> Verdict:
    """Lower bounds on epsilon from the scores against what the ledger states."""
    name, found = "epsilon", bounds(seen)
    if not found:
        return _verdict(name, None, "too few canaries", f"the ledger states {seen.epsilon:.3f}")
    certain = max(bounds(seen, 1 - LEVEL / len(found)).values())
    told = ", ".join(f"{value:.3f} ({method})" for method, value in found.items())
    return _verdict(
        name, certain > seen.epsilon, f"at least {told}, each at 95 %",
        f"the ledger states {seen.epsilon:.3f}",
    )  # fmt: skip


def check_ledger(seen: Observed) -> Verdict:
    """The ledger's steps, noise and rates against what was counted."""
    wrong = list(_ledger_faults(seen))
    counted = sum(seen.steps.values())
    charged = sum(e.steps for events in seen.ledger.values() for e in events)
    told = f"{charged} steps charged, {counted} seen"
    return _verdict(
        "ledger", bool(wrong), told + (f"; {wrong[0]}" if wrong else ""),
        "every step must be charged, with the plan's noise and rate",
    )  # fmt: skip


def _ledger_faults(seen: Observed) -> Iterator[str]:
    for (client, round), steps in sorted(seen.steps.items()):
        planned = seen.plan.clients[client]
        events = [e for e in seen.ledger.get(client, []) if e.round == round]
        where = f"client {client} in round {round}"
        if sum(e.steps for e in events) < steps:
            yield f"{where} took {steps} and was charged {sum(e.steps for e in events)}"
        for e in events:
            if e.noise_multiplier > planned.noise_multiplier:
                yield f"{where} is charged for noise of {e.noise_multiplier:.4g}"
            if e.sample_rate < planned.accounted_rate:
                yield f"{where} is charged for the rate {e.sample_rate:.4g}"


def check_target(seen: Observed) -> Verdict:
    """What was seen, by another accountant than the plan's, against the target."""
    plan = seen.plan
    assert plan.delta is not None
    other = "pld" if plan.accountant != "pld" else "prv"
    taken: dict[int, int] = {}
    for (client, _), steps in seen.steps.items():
        taken[client] = taken.get(client, 0) + steps
    spent = {
        client: cost(
            [(plan.clients[client].noise_multiplier, plan.clients[client].accounted_rate, steps)],
            plan.delta, other,
        ).epsilon
        for client, steps in taken.items()
    }  # fmt: skip
    worst = max(spent.values(), default=0.0)
    bound = max((c.epsilon_bound or 0.0) for c in plan.clients)
    limit = bound if plan.epsilon is None else plan.epsilon
    beyond_bound = [k for k, n in taken.items() if n > plan.clients[k].steps_bound]
    told = f"epsilon {worst:.3f} for the steps seen ({other} accountant)"
    if beyond_bound:
        told += f"; client {beyond_bound[0]} took more steps than the plan's bound"
    return _verdict(
        "target", bool(beyond_bound) or worst > 1.02 * limit, told,
        f"the target is {limit:.3f} at delta {plan.delta:g}",
    )  # fmt: skip
