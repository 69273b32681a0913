"""python -m benchmarks.gradients [--repeats N]: the check of per-example gradients.

Prints what the check costs on the default model, what it finds on small random models of many
architectures, how far rounding moves a gradient with its padding, and what a loop costs.
"""

import argparse
import contextlib
import io
import statistics
import time

from benchmarks.common import interleaved, machine, table
from fedsvd.client import gradients
from fedsvd.client.training import train_locally
from fedsvd.client.worker import Worker, build_worker
from fedsvd.composing import settings_of
from fedsvd.errors import InputError
from fedsvd.privacy.exactness import TOLERANCE, Difference, farthest
from fedsvd.testing.architectures import ARCHITECTURES, small_worker


def default_worker(*overrides: str) -> Worker:
    return build_worker(settings_of(["privacy.accountant=rdp", *overrides]))


def cost(repeats: int) -> None:
    worker = default_worker()
    wall, processor = [], []
    for _ in range(repeats):
        began, used = time.perf_counter(), time.process_time()
        gradients.settle(worker)
        wall.append(time.perf_counter() - began)
        processor.append(time.process_time() - used)
    print(
        f"\nThe check on the default model: {statistics.median(processor):.2f} s of processor, "
        f"{statistics.median(wall):.2f} s of clock (medians of {repeats})"
    )


def architectures() -> None:
    print(
        f"\n{'architecture':26}{'gradients':12}farthest from plain autograd (limit {TOLERANCE:g})"
    )
    real = gradients._compare
    for name, architecture in ARCHITECTURES.items():
        found: list[Difference] = []

        def compare(*args: object, found: list[Difference] = found) -> Difference:
            found.append(real(*args))  # type: ignore[arg-type]
            return found[-1]

        gradients._compare = compare  # type: ignore[assignment]
        said = io.StringIO()
        try:
            with contextlib.redirect_stderr(said):
                chosen = small_worker(architecture).plan.gradients
            worst = max(found, key=lambda d: d.size) if found else None
            why = f"{worst.size:.1e}" if worst and worst.size < TOLERANCE else ""
            lines = [x for x in said.getvalue().splitlines() if x.startswith("privacy.gradients")]
            why = why or lines[0].split(": ", 2)[-1]
        except InputError as error:
            chosen, why = "refused", str(error).split("own: ", 1)[-1]
            why = why.removeprefix(f"model.name: {architecture.name!r} ")
        finally:
            gradients._compare = real
        print(f"{name:26}{chosen:12}{why[:110]}")


def padding() -> None:
    """Print how far padding moves the gradients of the default model, by precision."""
    print("\nThe same gradients, padded and alone, on the default model")
    for precision in ("fp32", "bf16"):
        worker = default_worker(f"training.precision={precision}")
        with gradients.undisturbed(worker), gradients._asked(worker) as asked:
            asked.model.precision = precision
            named = list(asked.model.trainable())
            expected = gradients._alone(asked)
            assert worker.hooks is not None
            worst = []
            for group in gradients.GROUPS:
                worker.hooks.renew()
                asked.losses(group).sum().backward()
                found = {n: p.grad_sample for n, p in asked.model.trainable().items()}  # type: ignore[attr-defined]
                worst.append(farthest(found, {n: expected[n][list(group)] for n in named}).size)
        print(f"  {precision}: {max(worst):.1e} of an example's gradient at most")


def loop(repeats: int) -> None:
    variants = {}
    for kind in ("hooks", "loop"):
        worker = default_worker(
            f"privacy.gradients={kind}", "training.local_steps=1", "training.batch_size=32"
        )
        variants[kind] = lambda worker=worker: train_locally(worker, worker.initial, 0, 1)
    seconds = interleaved(variants, repeats)
    table("A client's step of 32 expected examples, default model", seconds, "hooks")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--repeats", type=int, default=3)
    repeats = parser.parse_args().repeats
    print(machine())
    cost(repeats)
    architectures()
    padding()
    loop(repeats)


if __name__ == "__main__":
    main()
