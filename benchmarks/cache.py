"""python -m benchmarks.cache [--repeats N]: adapters on the upper third, and what enters them kept.

A local step of a client and an evaluation on the default task and model, query and value adapted:
all blocks; the upper third with every block run every time; the upper third from what is kept. Time
of the processor and of the clock, interleaved, medians. Then what it costs to fill.
"""

import argparse
import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

from benchmarks.common import machine
from fedsvd.client.training import train_locally
from fedsvd.client.worker import Worker, build_worker
from fedsvd.composing import settings_of

VARIANTS = {
    "all blocks adapted": [],
    "upper third, run whole": ["adapter.layers=upper_third", "training.cache=off"],
    "upper third, kept": ["adapter.layers=upper_third"],
}
WHOLE, KEPT = "upper third, run whole", "upper third, kept"
GOAL = 2.5


def worker_of(*overrides: str) -> Worker:
    given = [
        "privacy.accountant=rdp", "training.local_steps=1", "training.precision=fp32",
        "engine.threads=1", *overrides,
    ]  # fmt: skip
    return build_worker(settings_of(given))


def interleaved(
    variants: Mapping[str, Callable[[], object]], repeats: int
) -> dict[str, tuple[float, float]]:
    """Return the median seconds of the processor and of the clock of each variant."""
    taken: dict[str, list[tuple[float, float]]] = {name: [] for name in variants}
    for run in variants.values():
        run()  # fills what is kept
    for _ in range(repeats):
        for name, run in variants.items():
            used, began = time.process_time(), time.perf_counter()
            run()
            taken[name].append((time.process_time() - used, time.perf_counter() - began))
    return {
        name: (statistics.median(t[0] for t in times), statistics.median(t[1] for t in times))
        for name, times in taken.items()
    }


def show(title: str, found: Mapping[str, tuple[float, float]]) -> None:
    print(f"\n{title}\n{'':26}{'processor':>12}{'clock':>12}{'share of the last':>32}")
    for name, (used, passed) in found.items():
        ratio = f"{found[KEPT][0] / used:.2f} / {found[KEPT][1] / passed:.2f}"
        print(f"{name:26}{1000 * used:>9.0f} ms{1000 * passed:>9.0f} ms{ratio:>32}")
    used, passed = (a / b for a, b in zip(found[WHOLE], found[KEPT], strict=True))
    print(f"kept over run whole: {used:.2f} processor, {passed:.2f} clock (goal {GOAL})")
    used, passed = (a / b for a, b in zip(found["all blocks adapted"], found[KEPT], strict=True))
    print(f"kept over all blocks adapted: {used:.2f} processor, {passed:.2f} clock")


def filling(worker: Worker, rows: list[int]) -> None:
    kept = worker.kept
    assert kept is not None
    kept = kept.apart()
    used = time.process_time()
    for row in rows:
        kept.entering(worker.tokens, [row])
    alone = time.process_time() - used
    used = time.process_time()
    for row in rows:
        kept.entering(worker.tokens, [row])
    again = time.process_time() - used
    total = sum(t.numel() * t.element_size() for t in kept.store.held.values())
    print(
        f"\nFilling: {1000 * alone / len(rows):.2f} ms an example, once; looking up "
        f"{1000 * again / len(rows):.3f} ms; {total / len(rows) / 1e3:.1f} kB an example"
    )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=7)
    repeats = parser.parse_args().repeats
    workers = {name: worker_of(*given) for name, given in VARIANTS.items()}
    print(machine())
    print(workers[KEPT].blocks)
    rows, parts = workers[KEPT].task.validation, workers[KEPT].parts
    most = max(range(len(parts)), key=lambda k: len(parts[k]))
    steps = {name: lambda w=w: train_locally(w, w.initial, most, 1) for name, w in workers.items()}
    drawn = steps[KEPT]().steps[0].examples
    show(f"A local step of {drawn} examples", interleaved(steps, repeats))
    # What a run starts from is scored once in a process, so it is given as that of a later round.
    later = {name: replace(w.initial, round=1) for name, w in workers.items()}
    looks = {n: lambda w=w, s=later[n]: w.evaluate(s, rows) for n, w in workers.items()}
    show(f"Evaluation of {len(rows)} examples", interleaved(looks, max(2, repeats // 3)))
    filling(workers[KEPT], rows[:200].tolist())


if __name__ == "__main__":
    main()
