"""python -m benchmarks.accountants: PRV, PLD and RDP over a grid, and calibration for 100 clients.

Baseline: PLD of Google's dp-accounting. Every accountant's epsilon at delta 1e-5 and the seconds it
took. About five minutes.
"""

import itertools
import math
import time
import warnings
from typing import Any

import numpy as np

from fedsvd.privacy.accounting import cost, epsilon
from fedsvd.privacy.calibration import noise_multipliers

RATES, SIGMAS, STEPS = (0.001, 0.01, 0.05, 0.2), (0.5, 1.0, 2.0, 4.0), (10, 100, 1000, 10000)


def main() -> None:
    warnings.simplefilter("ignore")
    epsilon([(1.0, 0.1, 10)], 1e-5, "prv")  # imports
    epsilon([(1.0, 0.1, 10)], 1e-5, "pld")
    print(f"{'rate':>6}{'sigma':>7}{'steps':>7}{'pld':>11}{'prv/pld':>10}{'rdp/pld':>10}"
          f"{'pld s':>8}{'prv s':>8}{'rdp s':>8}")  # fmt: skip
    apart: list[Any] = []
    below: list[Any] = []
    failed: list[Any] = []
    for rate, sigma, steps in itertools.product(RATES, SIGMAS, STEPS):
        found, seconds = {}, {}
        for name in ("rdp", "pld", "prv"):
            began = time.perf_counter()
            found[name] = cost([(sigma, rate, steps)], 1e-5, name)
            seconds[name] = time.perf_counter() - began
        pld, rdp = found["pld"].epsilon, found["rdp"].epsilon
        answered = found["prv"].accountant == "prv"
        ratio = found["prv"].epsilon / pld if answered else math.nan
        (apart if answered else failed).append((rate, sigma, steps, ratio))
        if rdp < pld or (answered and rdp < found["prv"].epsilon):
            below.append((rate, sigma, steps))
        shown = f"{ratio:.4f}" if answered else "(rdp)"
        print(f"{rate:>6}{sigma:>7}{steps:>7}{pld:>11.5g}{shown:>10}{rdp / pld:>10.4f}"
              f"{seconds['pld']:>8.2f}{seconds['prv']:>8.2f}{seconds['rdp']:>8.2f}")  # fmt: skip
    worst = max(apart, key=lambda row: abs(row[3] - 1))
    print(f"\nPRV answered {len(apart)} of {len(apart) + len(failed)}; furthest from PLD: {worst}")
    print(f"PRV fell back to RDP at: {[row[:3] for row in failed]}")
    print(f"RDP below PRV or PLD at: {below}")

    rates = np.exp(np.random.default_rng(0).uniform(math.log(0.01), math.log(0.5), 100)).tolist()
    for name in ("prv", "rdp"):
        began = time.perf_counter()
        noise_multipliers(1.0, 1e-5, rates, 50, name)
        print(f"calibration of 100 distinct clients, {name}: {time.perf_counter() - began:.2f} s")


if __name__ == "__main__":
    main()
