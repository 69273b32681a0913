"""Lower bounds on epsilon from one run in which every canary was in or out by a fair coin.

The auditor guesses the coins of some canaries and is held against the most that a private mechanism
lets anybody guess. Nothing is assumed about the scores. Xiang et al. (arXiv 2509.08704) show in which
settings such bounds are tight, and in which none is.
"""

from collections.abc import Callable, Sequence

import numpy as np
from scipy.optimize import bisect
from scipy.special import expit, ndtr, ndtri
from scipy.stats import binom

from fedsvd.audit.estimators import CONFIDENCE, gdp_epsilon

SHARES = (1.0, 0.5, 0.2, 0.1, 0.05, 0.02)  # of the canaries that are guessed; fixed beforehand
MOST_EPSILON = 100.0


def correct_guesses(inside: np.ndarray, outside: np.ndarray, guesses: int) -> int:
    """Return how many of `guesses` are right: the highest half are said to be in, the lowest out."""
    scores = np.concatenate([inside, outside])
    truth = np.concatenate([np.ones(len(inside), bool), np.zeros(len(outside), bool)])
    order = truth[np.argsort(scores, kind="stable")]
    low = guesses // 2
    return int((~order[:low]).sum() + order[len(order) - (guesses - low) :].sum())


def one_run_p(canaries: int, guesses: int, correct: int, epsilon: float, delta: float) -> float:
    """Return the largest probability of at least `correct` right guesses under (epsilon, delta)-DP.

    With v right of r guesses, p = P[W >= v] + 2 m delta max_i P[v > W >= v - i] / i for W binomial
    of r trials at exp(epsilon) / (1 + exp(epsilon)): theorem 5.2 of Steinke, Nasr, Jagielski
    (NeurIPS 2023, arXiv 2305.08846).
    """
    chance = float(expit(epsilon))
    p = float(binom.sf(correct - 1, guesses, chance))
    if delta > 0 and correct > 0:
        i = np.arange(1, correct + 1)
        below = binom.sf(correct - i - 1, guesses, chance) - p
        p += 2 * canaries * delta * float((below / i).max())
    return min(p, 1.0)


def one_run_epsilon(
    inside: np.ndarray, outside: np.ndarray, delta: float, confidence: float = CONFIDENCE
) -> float:
    """Return the Steinke-Nasr-Jagielski lower bound on epsilon at `delta`; 0 if there is none.

    The best over the shares of canaries guessed, each at (1 - confidence) / their number.
    """
    canaries = len(inside) + len(outside)

    def refuted(guesses: int, correct: int, epsilon: float, level: float) -> bool:
        return one_run_p(canaries, guesses, correct, epsilon, delta) < level

    return _best(inside, outside, confidence, refuted)


def one_run_mu(
    inside: np.ndarray, outside: np.ndarray, confidence: float = CONFIDENCE
) -> float:  # fmt: skip
    """Return a lower bound on mu under Gaussian DP from the same guesses; 0 if there is none.

    Algorithm 3 of Mahloujifar, Melis, Chaudhuri (ICML 2025, arXiv 2410.22235) with the trade-off
    function of mu-GDP.
    """
    canaries = len(inside) + len(outside)

    def refuted(guesses: int, correct: int, mu: float, level: float) -> bool:
        return fdp_refuted(canaries, guesses, correct, mu, level)

    return _best(inside, outside, confidence, refuted)


def one_run_fdp_epsilon(
    inside: np.ndarray, outside: np.ndarray, delta: float, confidence: float = CONFIDENCE
) -> float:
    """Return the epsilon at `delta` of `one_run_mu`."""
    return gdp_epsilon(one_run_mu(inside, outside, confidence), delta)


def fdp_refuted(canaries: int, guesses: int, correct: int, mu: float, level: float) -> bool:
    """Return whether that many right guesses have probability below `level` under mu-GDP.

    r_i and h_i bound the joint probabilities of a right and of a wrong guess with at least i others
    right. From i = v down: h_i = g(r_{i+1}) with g(x) = Phi(Phi^-1(x) - mu), the inverse of the most
    that probabilities can grow, and r_i = r_{i+1} + i / (c - i) (h_i - h_{i+1}) for c guesses. The
    claim falls if r_0 + h_0 exceeds the share of guesses c / m.
    """
    right, wrong = level * correct / canaries, level * (guesses - correct) / canaries
    for i in range(correct - 1, -1, -1):
        found = float(ndtr(ndtri(min(right, 1.0)) - mu))
        if found <= wrong:  # neither can change any more
            break
        right, wrong = min(right + i / (guesses - i) * (found - wrong), 1.0), found
    return right + wrong > guesses / canaries


def _best(
    inside: np.ndarray,
    outside: np.ndarray,
    confidence: float,
    refuted: Callable[[int, int, float, float], bool],
    shares: Sequence[float] = SHARES,
) -> float:
    """Return the largest parameter that is refuted at any share of guesses, each at its level."""
    canaries, level = len(inside) + len(outside), (1 - confidence) / len(shares)
    found = 0.0
    for guesses in sorted({max(2, round(share * canaries)) for share in shares}):
        correct = correct_guesses(inside, outside, guesses)
        if 2 * correct <= guesses or not refuted(guesses, correct, found, level):
            continue
        if refuted(guesses, correct, MOST_EPSILON, level):
            return MOST_EPSILON

        def sign(value: float, guesses: int = guesses, correct: int = correct) -> float:
            return 1.0 if refuted(guesses, correct, value, level) else -1.0

        found = float(bisect(sign, found, MOST_EPSILON, xtol=1e-4))
    return found
