"""python -m benchmarks.products [--avx2] [--repeats N] [KEY=VALUE ...]: a step over its products.

The matrix products of a client's local training are written down as they are asked for, with their
shapes and layouts, and then run alone on as many threads: `torch.mm` and `torch.bmm`, nothing else.
What is left of the step's time is everything that is not a product. Both are also measured for the
model as it was, without `fedsvd.client.shorten`: its products are the baseline. Two tasks: the
default model on the default data, and BERT-Tiny on squad_pairs (docs/tasks.md; FEDSVD_TASKS), each
in fp32 on one thread. Time of the processor, interleaved, medians. `--avx2` lets all libraries use
AVX2 alone. KEY=VALUE are settings of every run. `--profile` prints in its place where a step's time
goes.
"""

import argparse
import os
import statistics
import sys
import time
from collections.abc import Callable, Mapping
from typing import Any

AVX2 = {
    "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}  # fmt: skip
if "--avx2" in sys.argv:
    os.environ.update(AVX2)  # they are read when torch is loaded

import torch  # noqa: E402
from torch import Tensor  # noqa: E402
from torch.utils._python_dispatch import TorchDispatchMode  # noqa: E402

from benchmarks.common import machine  # noqa: E402
from fedsvd.client import worker as workers  # noqa: E402
from fedsvd.client.training import train_locally  # noqa: E402
from fedsvd.client.worker import Worker, build_worker  # noqa: E402
from fedsvd.composing import settings_of  # noqa: E402

TASKS = {
    "default model": [],
    "BERT-Tiny": ["model=bert_tiny", "data=squad_pairs"],
}
aten = torch.ops.aten
# Which arguments of a product are its factors.
PRODUCTS = {aten.mm: 0, aten.bmm: 0, aten.mv: 0, aten.addmm: 1, aten.addmm_: 1, aten.baddbmm: 1}
FUSED = {
    aten._scaled_dot_product_flash_attention_for_cpu: 2,
    aten._scaled_dot_product_flash_attention_for_cpu_backward: 5,
}  # attention: how many products an operation holds, of queries (n, h, t, d)


class Noted(TorchDispatchMode):
    """Writes down the factors of every product, as (shape, strides) each, and multiplications."""

    def __init__(self) -> None:
        super().__init__()
        self.found: list[tuple[tuple[Any, Any], tuple[Any, Any]]] = []
        self.multiplied = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        op = func.overloadpacket
        if op in PRODUCTS:
            a, b = args[PRODUCTS[op] : PRODUCTS[op] + 2]
            self.found.append(((a.shape, a.stride()), (b.shape, b.stride())))
            self.multiplied += a.numel() * (b.shape[-1] if b.ndim > 1 else 1)
        elif op in FUSED:
            q = args[1] if FUSED[op] == 5 else args[0]
            n, h, t, d = q.shape
            for i in range(FUSED[op]):
                wide, flat = ((n * h, t, d), (t * d, d, 1)), ((n * h, d, t), (t * d, t, 1))
                square = ((n * h, t, t), (t * t, t, 1))
                self.found.append((wide, flat) if i % 2 == 0 else (square, wide))
                self.multiplied += n * h * t * t * d
        return func(*args, **(kwargs or {}))


def alone(noted: Noted) -> Callable[[], object]:
    """Return what runs the products that were noted, and nothing else."""
    made: dict[Any, Tensor] = {}
    for layout in {layout for pair in noted.found for layout in pair}:
        value = torch.empty_strided(*layout)
        made[layout] = value.copy_(torch.randn(layout[0]))
    pairs = [(made[a], made[b]) for a, b in noted.found]

    def run() -> None:
        with torch.inference_mode():
            for a, b in pairs:
                if b.ndim == 1:
                    torch.mv(a, b)
                elif a.ndim == 2:
                    torch.mm(a, b)
                else:
                    torch.bmm(a, b)

    return run


def worker_of(*overrides: str) -> Worker:
    given = [
        "privacy.accountant=rdp", "training.precision=fp32", "engine.threads=1", *overrides,
    ]  # fmt: skip
    return build_worker(settings_of(given))


def interleaved(variants: Mapping[str, Callable[[], object]], repeats: int) -> dict[str, float]:
    """Return the median seconds of the processor of each variant."""
    taken: dict[str, list[float]] = {name: [] for name in variants}
    for run in variants.values():
        run()
    for _ in range(repeats):
        for name, run in variants.items():
            began = time.process_time()
            run()
            taken[name].append(time.process_time() - began)
    return {name: statistics.median(times) for name, times in taken.items()}


def rate(size: int = 768) -> float:
    """Return the GFLOP/s of a square product in fp32: what the libraries really use."""
    a = torch.randn(size, size)
    seconds = interleaved({"square": lambda: torch.mm(a, a)}, 15)["square"]
    return 2 * size**3 / seconds / 1e9


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--avx2", action="store_true")
    parser.add_argument("--only", choices=TASKS)
    parser.add_argument("--profile", action="store_true")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(f"{machine()}; a square product in fp32 makes {rate():.0f} GFLOP/s")
    for name in [arguments.only] if arguments.only else TASKS:
        given = [*TASKS[name], *arguments.overrides]
        if arguments.profile:
            profiled(step_of(worker_of(*given)))
        else:
            compare(name, given, arguments.repeats)


def step_of(worker: Worker) -> Callable[[], Any]:
    """Return the local training of one client: not the one with the least examples."""
    client = sorted(range(len(worker.parts)), key=lambda k: len(worker.parts[k]))[1]
    return lambda: train_locally(worker, worker.initial, client, 1)


def compare(name: str, given: list[str], repeats: int) -> None:
    """Measure the step as it is and as it was, each with its products, and print the ratios."""
    short, workers.shorten = workers.shorten, lambda *_: []
    try:
        old = step_of(worker_of(*given))
    finally:
        workers.shorten = short
    variants: dict[str, Callable[[], object]] = {}
    flops = {}
    for title, step in (("as it is", step_of(worker_of(*given))), ("as it was", old)):
        step()
        with Noted() as noted:
            steps = step().steps
        variants[title], variants[f"{title}, products"] = step, alone(noted)
        flops[title] = 2e-9 * noted.multiplied
    count = len(steps)
    found = {n: s / count for n, s in interleaved(variants, repeats).items()}
    baseline = found["as it was, products"]
    print(f"\n{name}: a step of {sum(s.examples for s in steps) / count:.0f} examples")
    for title in ("as it is", "as it was"):
        taken, own = found[title], found[f"{title}, products"]
        print(
            f"{title}: {1000 * taken:.0f} ms, its products {1000 * own:.0f} ms "
            f"({flops[title] / count / own:.0f} GFLOP/s, {100 * own / taken:.0f} % of the step); "
            f"{taken / baseline:.2f} of the baseline"
        )


def profiled(step: Callable[[], object]) -> None:
    """Print where the time of a step goes, by operation."""
    with torch.profiler.profile() as profile:
        step()
    print(profile.key_averages().table(sort_by="self_cpu_time_total", row_limit=30))


if __name__ == "__main__":
    main()
