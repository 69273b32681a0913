"""python -m benchmarks.refactorisation [--full]: 48 layers of 1024 x 1024, rank 8, one server step.

--full also takes the SVD of the full products, as the paper describes it (minutes on a CPU); without
it the full SVD is taken of one layer and its time multiplied by 48.
"""

import argparse
import time

import torch

from benchmarks.common import machine, table
from fedsvd.lowrank import LowRank, refactorise_pairs


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--full", action="store_true")
    arguments = parser.parse_args()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    generator = torch.Generator().manual_seed(0)
    factors = {
        f"layer{i}": LowRank(
            torch.randn(8, 1024, generator=generator).to(device),
            torch.randn(1024, 8, generator=generator).to(device),
        )
        for i in range(48)
    }
    seconds = []
    for _ in range(21):
        began = time.perf_counter()
        new = refactorise_pairs(factors)
        if device == "cuda":
            torch.cuda.synchronize()
        seconds.append(time.perf_counter() - began)
    core = sorted(seconds[1:])[10]
    layers = list(factors.values()) if arguments.full else list(factors.values())[:1]
    began = time.perf_counter()
    for pair in layers:
        torch.linalg.svd(pair.product(), full_matrices=False)
    if device == "cuda":
        torch.cuda.synchronize()
    full = (time.perf_counter() - began) * 48 / len(layers)
    error = max(
        float((new[k].product() - p.product()).norm() / p.product().norm())
        for k, p in factors.items()
    )
    print(machine())
    name = "SVD of the full products" + ("" if arguments.full else ", 48 x one")
    table("Refactorisation of 48 layers 1024 x 1024, rank 8", {name: full, "ours": core}, name)
    print(f"full / ours: {full / core:.0f}; largest relative error of the product: {error:.1e}")


if __name__ == "__main__":
    main()
