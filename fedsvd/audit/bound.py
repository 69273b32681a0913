"""The mechanism audit: replays of one step, and the epsilon that they imply for all planned steps."""

import math
from dataclasses import dataclass

import numpy as np
from scipy.stats import beta, chi2, kstest, norm

from fedsvd.audit.estimators import CONFIDENCE
from fedsvd.audit.mechanism import (
    CANARIES,
    SIZE,
    ClientStep,
    ExampleStep,
    Replays,
    clients_drawn,
    largest_move,
    poisson,
    replay,
)
from fedsvd.audit.verdicts import LEVEL, Verdict, beyond
from fedsvd.privacy.accounting import cost
from fedsvd.privacy.client_level import make_mechanism
from fedsvd.privacy.clipping import STABILITY
from fedsvd.privacy.plan import ClientPlan, PrivacyPlan
from fedsvd.settings import Settings

MOST_TESTED = 20_000  # held-out scores whose distribution is tested
ROUNDING = 1e-3  # relative, of float32 sums


@dataclass(frozen=True)
class Mechanism:
    """What replays showed, and the lower bound on epsilon that follows at 95 %.

    noise, rate, steps: of the plan; epsilon: what its accountant says of them.
    """

    replays: Replays
    noise: float
    rate: float
    steps: int
    epsilon: float
    bound: float


def audit_mechanism(
    settings: Settings, plan: PrivacyPlan, replays: int
) -> tuple[Mechanism, list[Verdict]]:
    """Replay the planned mechanism of the client that spends most, and judge what it shows."""
    client = max(plan.clients, key=lambda c: (c.epsilon_bound or 0.0, -c.client))
    noise, share = client.noise_multiplier, 1.0
    if plan.unit == "example":
        found = replay(poisson(settings, client.sample_rate), ExampleStep(settings, noise), replays)
        quiet: ExampleStep | ClientStep = ExampleStep(settings, 0.0)
        sampled = client.sample_rate
    else:
        mechanism = make_mechanism(settings, noise)
        # With an adaptive clip a share of the budget is the count's: the update has more noise.
        noise, share = mechanism.update_noise, noise / mechanism.update_noise
        found = replay(clients_drawn(settings, plan), ClientStep(settings, mechanism), replays)
        still = make_mechanism(settings, 1e-9)
        quiet, sampled = ClientStep(settings, still), client.accounted_rate
    worst, case = largest_move(quiet)
    lower = _bound(found, client, plan, share, CONFIDENCE)
    spent = client.epsilon_bound or math.inf
    seen = Mechanism(found, noise, sampled, client.steps_bound, spent, lower)
    certain = _bound(found, client, plan, share, 1 - LEVEL)
    return seen, [
        Verdict("mechanism", "sensitivity", not worst <= 1 + ROUNDING,
                f"a move of {worst:.4g} C at most, by {case}",
                "one example moves the sum by at most C"),
        _noise(found, noise),
        _shape(found),
        _fresh(found),
        _contribution(found, noise, settings),
        _rate(found, sampled),
        Verdict("mechanism", "epsilon", certain > spent,
                f"at least {lower:.3f} at 95 % over {client.steps_bound} steps, from {replays} "
                "replays",
                f"the {client.accountant} accountant gives {spent:.3f} (the bound is "
                f"{100 * lower / spent:.1f} % of it)"),
    ]  # fmt: skip


def _bound(
    found: Replays, client: ClientPlan, plan: PrivacyPlan, share: float, confidence: float
) -> float:
    """Return epsilon for a rate, contribution and noise at their joint confidence limits.

    The scores of a drawn and of a held-out canary are two Gaussians (which `_shape` tests), so a step
    tells as much as a sampled Gaussian step of that rate and that noise per contribution, and steps
    are independent (`_fresh`). Each of the three limits is at a third of what the bound may err.
    """
    wrong = (1 - confidence) / 3
    n = found.held_out.size
    deviation = found.deviation * math.sqrt(n / chi2.ppf(wrong, n))
    mean = found.mean - float(norm.isf(wrong)) * found.deviation / math.sqrt(max(found.drawn, 1))
    rate = 1.0 if found.drawn == found.offered else float(
        beta.ppf(wrong, found.drawn, found.offered - found.drawn + 1)
    )  # fmt: skip
    if mean <= 0 or not found.drawn:
        return 0.0
    if deviation == 0:
        return math.inf
    assert plan.delta is not None
    # An accountant counts the whole mechanism; the update is a known share of an adaptive clip's.
    events = [(share * deviation / mean, rate, client.steps_bound)]
    return cost(events, plan.delta, client.accountant or "prv").epsilon


def _noise(found: Replays, noise: float) -> Verdict:
    ratio = found.deviation / noise
    se = 1 / math.sqrt(2 * found.held_out.size)
    return Verdict(
        "mechanism", "noise", beyond(ratio, 1.0, se, ROUNDING),
        f"{ratio:.4f} (se {se:.4f}) of the planned deviation {noise:.4g} C", "theory: 1",
    )  # fmt: skip


def _shape(found: Replays) -> Verdict:
    some = found.held_out.ravel()[:: max(1, found.held_out.size // MOST_TESTED)]
    p = float(kstest(some / max(found.deviation, 1e-30), "norm").pvalue)
    return Verdict(
        "mechanism", "shape of the noise", p < LEVEL,
        f"p = {p:.2g} in a Kolmogorov-Smirnov test of {len(some)} scores", "they must be Gaussian",
    )  # fmt: skip


def _fresh(found: Replays) -> Verdict:
    limit = float(norm.isf(LEVEL / found.pairs / 2)) / math.sqrt(CANARIES) * 1.1
    return Verdict(
        "mechanism", "noise is fresh", found.repeated > limit,
        f"a largest correlation of {found.repeated:.3f} between two replays",
        f"independent noise stays below {limit:.3f}",
    )  # fmt: skip


def _contribution(found: Replays, noise: float, settings: Settings) -> Verdict:
    wanted = 1.0
    if settings.privacy.clipping == "automatic":
        wanted = SIZE / (SIZE + STABILITY / settings.privacy.clip_norm)
    se = noise / math.sqrt(max(found.drawn, 1))
    flagged: bool | None = beyond(found.mean, wanted, se, ROUNDING) if found.drawn else None
    return Verdict(
        "mechanism", "clipping", flagged,
        f"{found.mean:.4f} C (se {se:.4f}) added by a canary of norm 100 C",
        f"theory: {wanted:.4f} C",
    )  # fmt: skip


def _rate(found: Replays, rate: float) -> Verdict:
    se = math.sqrt(rate * (1 - rate) / found.offered)
    return Verdict(
        "mechanism", "sampling rate", beyond(found.rate, rate, se),
        f"{found.rate:.5f} (se {se:.5f}) of canaries drawn", f"the plan: {rate:.5f}",
    )  # fmt: skip


def standardised(found: Replays) -> np.ndarray:
    """Return some of the held-out scores in deviations of their own, for a figure."""
    some = found.held_out.ravel()[:: max(1, found.held_out.size // MOST_TESTED)]
    return np.asarray(some / found.deviation) if found.deviation else np.asarray(some)
