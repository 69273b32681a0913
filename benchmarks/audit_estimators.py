"""Lower bounds on epsilon of the same canaries' scores, by this package and by others.

    python benchmarks/audit_estimators.py             # where fedsvd is installed
    OTHER/bin/python benchmarks/audit_estimators.py   # where jax-privacy and opake-auditing are

Scores are Gaussian with a known mu, 2,000 canaries with a fair coin each; --json FILE adds the
scores of an audit's --json. A library that is not installed is left out.
"""

import argparse
import importlib.util
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

DELTA, CONFIDENCE, CANARIES = 1e-5, 0.95, 2000
Scores = tuple[np.ndarray, np.ndarray]


def drawn(mu: float, seed: int = 0) -> Scores:
    rng = np.random.default_rng(seed)
    coins = rng.random(CANARIES) < 0.5
    scores = mu * coins + rng.standard_normal(CANARIES)
    return scores[coins], scores[~coins]


def of_fedsvd() -> dict[str, Callable[[Scores], float]]:
    from fedsvd.audit.estimators import gaussian_mu, gdp_epsilon, threshold_mu
    from fedsvd.audit.one_run import one_run_epsilon, one_run_fdp_epsilon

    return {
        "fedsvd: Gaussian estimate": lambda s: gdp_epsilon(gaussian_mu(*s).lower(), DELTA),
        "fedsvd: one threshold, GDP": lambda s: gdp_epsilon(
            threshold_mu(*s, float(np.median(np.concatenate(s)))), DELTA
        ),
        "fedsvd: one run, f-DP (Mahloujifar et al.)": lambda s: one_run_fdp_epsilon(*s, DELTA),
        "fedsvd: one run (Steinke et al.)": lambda s: one_run_epsilon(*s, DELTA),
    }


def of_jax_privacy() -> dict[str, Callable[[Scores], float]]:
    from jax_privacy import auditing

    def auditor(scores: Scores) -> auditing.CanaryScoreAuditor:
        return auditing.CanaryScoreAuditor(*scores)

    wrong = 1 - CONFIDENCE
    return {
        "jax-privacy: GDP, all thresholds": lambda s: auditor(s).epsilon_from_gdp(wrong, DELTA),
        "jax-privacy: Clopper-Pearson": lambda s: auditor(s).epsilon_clopper_pearson(wrong, DELTA),
        "jax-privacy: one run, f-DP (Mahloujifar et al.)": lambda s: auditor(s).epsilon_one_run_fdp(
            wrong, DELTA
        ),
        "jax-privacy: one run (Steinke et al.)": lambda s: auditor(s).epsilon_one_run(wrong, DELTA),
    }


def of_opake() -> dict[str, Callable[[Scores], float]]:
    import opake.auditing
    from opake.auditing.types import CoinFlip

    def estimate(scores: Scores) -> Any:
        inside, outside = scores
        every = np.arange(len(inside) + len(outside))
        mask = every < len(inside)
        flip = CoinFlip(len(every), every, mask, every[mask], every[~mask])
        given = opake.auditing.canary_scores(np.concatenate(scores), canary_indices=every)
        return opake.auditing.one_run(given, coin_flip=flip)

    wrong = 1 - CONFIDENCE
    return {
        "opake: GDP (Xiang et al.)": lambda s: (
            estimate(s).gdp().epsilon_at(delta=DELTA, significance=wrong)
        ),
        "opake: one run (Xiang et al.)": lambda s: (
            estimate(s).eps_delta().epsilon_at(delta=DELTA, significance=wrong)
        ),
    }


LIBRARIES = {"fedsvd": of_fedsvd, "jax_privacy": of_jax_privacy, "opake": of_opake}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--json", type=Path, help="of python -m fedsvd.audit --json")
    given = parser.parse_args()
    cases = {f"mu = {mu:g}": drawn(mu) for mu in (0.25, 1.0, 3.0)}
    if given.json is not None:
        found = json.loads(given.json.read_text())["audits"][0]["scores"]
        cases["the audit"] = (np.array(found["in"]), np.array(found["out"]))
    print(f"| method | {' | '.join(cases)} | seconds |")
    print(f"|---|{'---:|' * (len(cases) + 1)}")
    for library, methods in LIBRARIES.items():
        if importlib.util.find_spec(library) is None:
            continue
        for name, method in methods().items():
            began = time.perf_counter()
            values = [f"{float(method(s)):.3f}" for s in cases.values()]
            print(f"| {name} | {' | '.join(values)} | {time.perf_counter() - began:.1f} |")
    truth = {"mu = 0.25": 0.25, "mu = 1": 1.0, "mu = 3": 3.0}
    if importlib.util.find_spec("fedsvd") is not None:
        from fedsvd.audit.estimators import gdp_epsilon

        told = [f"{gdp_epsilon(truth[c], DELTA):.3f}" if c in truth else "-" for c in cases]
        print(f"| the truth | {' | '.join(told)} | |")


if __name__ == "__main__":
    main()
