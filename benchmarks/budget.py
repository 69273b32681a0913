"""python -m benchmarks.budget [--steps] [--seconds S] [KEY=VALUE ...]: a step by its token budget.

What `training.microbatch_tokens=auto` measures, for longer: the processor's time of a typical batch
at each candidate, as a ratio to the default. Two tasks: the default model on the default data, and
BERT-Tiny on squad_pairs (docs/tasks.md; FEDSVD_TASKS), each on one thread in the precision that is
the machine's own. KEY=VALUE are settings of every run (`partition=iid` has steps of the expected
size). Passes over the candidates are interleaved,
and the least time counts. `--steps` measures whole local steps of one client in their place: with
sampling, padding, noise and the optimiser.
"""

import argparse
import time
from collections.abc import Callable, Mapping
from dataclasses import replace

import torch

from benchmarks.common import machine
from benchmarks.products import TASKS
from fedsvd.client import budget
from fedsvd.client.training import train_locally
from fedsvd.client.worker import Worker, build_worker
from fedsvd.composing import settings_of
from fedsvd.settings.clients import DEFAULT_BUDGET


def worker_of(given: list[str]) -> Worker:
    told = ["privacy.accountant=rdp", "engine.threads=1", *given]
    return build_worker(settings_of(told).with_budget(DEFAULT_BUDGET))


def steps_at(worker: Worker, seconds: float) -> Mapping[int, float]:
    """Return the least seconds of the processor of a client's local steps at each candidate."""
    client = sorted(range(len(worker.parts)), key=lambda k: len(worker.parts[k]))[-1]

    def work(tokens: int) -> Callable[[], None]:
        told = replace(worker, settings=worker.settings.with_budget(tokens))

        def run() -> None:
            train_locally(told, worker.initial, client, 1)

        return run

    def taken(run: Callable[[], None]) -> float:
        began = time.process_time()
        run()
        return time.process_time() - began

    tokens = budget.candidates(budget.batch_of(worker))
    return budget.least({c: work(c) for c in tokens}, taken, seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=30.0, help="of further passes, a task")
    parser.add_argument("--only", choices=TASKS)
    parser.add_argument("--steps", action="store_true")
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    torch.set_num_threads(1)
    print(machine())
    for name in [arguments.only] if arguments.only else TASKS:
        worker = worker_of([*TASKS[name], *arguments.overrides])
        began = time.perf_counter()
        if arguments.steps:
            seconds = steps_at(worker, arguments.seconds)
        else:
            budget.SECONDS, budget.SHARE = arguments.seconds, 1.0
            seconds = budget.measure(worker).seconds
        lengths = budget.batch_of(worker)
        what = "local steps" if arguments.steps else "a batch"
        print(
            f"\n{name}, {worker.precision}: {what} of {len(lengths)} texts, {int(lengths.sum())} "
            f"tokens, median length {int(lengths.median())}; measured in "
            f"{time.perf_counter() - began:.0f} s"
        )
        for tokens, taken in sorted(seconds.items()):
            mark = "  (default)" if tokens == DEFAULT_BUDGET else ""
            ratio = taken / seconds[DEFAULT_BUDGET]
            print(f"{tokens:>6} tokens{1000 * taken:>9.1f} ms{ratio:>8.3f}{mark}")


if __name__ == "__main__":
    main()
