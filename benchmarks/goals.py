"""python -m benchmarks.goals [round] [ray] [registered] [start]: four figures of the engines.

round: a no-op round of 3 of 6 clients, 1.64 MB each way, inline, over the bare client calls.
ray: the same round with two Ray workers, over inline; and over what Ray alone takes for its bytes:
an array put once, one and two copies of it back from two actors. registered: a whole round of ten
of 10,000 clients over ten of ten, without training. start: from `import ray` to the first reply, in
a process of its own, over that process's imports. Repetitions alternate. What stays in one process
is compared by its processor time on one thread, first deciles; Ray by the clock, the least of all,
since other work on a machine only ever adds to a time.
"""

import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import torch

from benchmarks.common import chosen, machine

START = """
import time
began = time.perf_counter()
import ray
from benchmarks.noop import noop_app, round_of
from fedsvd.engines.ray import RayGrid
from fedsvd.settings import EngineSettings
imported = time.perf_counter()
grid = RayGrid(noop_app, 6, EngineSettings("ray", workers=2, address="local"), [1.0] * 6)
started = time.perf_counter()
round_of(1638.4, grid.send_and_receive)([0, 2, 4])
print(imported - began, started - imported, time.perf_counter() - started)
grid.close()
"""


def alternating(
    variants: Mapping[str, Callable[[], object]], repeats: int, clock: bool = False
) -> dict[str, float]:
    """Return every variant's seconds, after three warm rounds of each."""
    now = time.perf_counter if clock else time.process_time
    times: dict[str, list[float]] = {name: [] for name in variants}
    for number in range(repeats + 3):
        for name, variant in variants.items():
            began = now()
            variant()
            if number > 2:
                times[name].append(now() - began)
    if clock:
        return {name: min(t) for name, t in times.items()}
    return {name: statistics.quantiles(t, n=10)[0] for name, t in times.items()}


def told(what: str, found: Mapping[str, float], upper: str, lower: str, goal: float) -> None:
    """Print a ratio, what it is made of, and what it is to be at most."""
    value = found[upper] / found[lower]
    parts = f"{1e3 * found[upper]:.2f} ms / {1e3 * found[lower]:.2f} ms"
    print(f"{what}: {upper} over {lower} = {parts} = {value:.2f} (goal {goal:g})", flush=True)


def rounds(with_ray: bool, repeats: int = 201) -> None:
    from flwr.app import Context, Message, RecordDict

    from benchmarks.noop import noop_app, round_of, state_of
    from fedsvd.engines.inline import InlineGrid
    from fedsvd.records import ARRAYS, to_record

    app, inline = noop_app(), InlineGrid(noop_app(), 6)
    content = RecordDict({ARRAYS: to_record(state_of(1638.4).tensors())})
    contexts = [Context(1, k, {}, RecordDict(), {}) for k in range(3)]
    one = round_of(1638.4, inline.send_and_receive)

    def bare() -> None:
        for k in range(3):
            app(Message(content, k, "train"), contexts[k])

    variants: dict[str, Callable[[], object]] = {
        "bare calls": bare,
        "inline": lambda: one([0, 2, 4]),
    }
    if not with_ray:
        told("round", alternating(variants, repeats), "inline", "bare calls", 2.5)
        return
    from fedsvd.engines.ray import RayGrid
    from fedsvd.settings import EngineSettings

    grid = RayGrid(noop_app, 6, EngineSettings("ray", workers=2, address="local"), [1.0] * 6)
    over_ray = round_of(1638.4, grid.send_and_receive)
    while len(grid._idle) < 2:  # until both workers are up
        over_ray([0, 2, 4])
    variants["ray"] = lambda: over_ray([0, 2, 4])
    variants["Ray alone"] = ray_alone()
    found = alternating(variants, repeats, clock=True)
    told("ray", found, "ray", "inline", 2.0)
    for name in ("ray", "Ray alone"):
        print(
            f"ray: {name} {1e3 * found[name]:.2f} ms, {found[name] / found['inline']:.2f} of inline"
        )
    grid.close()


def ray_alone() -> Callable[[], object]:
    """Return a round of the same bytes in two actors, with nothing of ours in it."""
    import ray

    @ray.remote(num_cpus=0)
    class Echo:
        def copies(self, array: np.ndarray, number: int) -> list[np.ndarray]:
            return [array.copy() for _ in range(number)]

    echo: Any = Echo
    actors, array = [echo.remote() for _ in range(2)], np.zeros(1638400 // 4, np.float32)

    def one() -> None:
        given = ray.put(array)
        waiting = [actor.copies.remote(given, n) for actor, n in zip(actors, (2, 1), strict=True)]
        while waiting:
            done, waiting = ray.wait(waiting)
            ray.get(done[0])

    one()
    return one


def start() -> None:
    done = subprocess.run(
        [sys.executable, "-c", START], check=True, capture_output=True, text=True
    )  # fmt: skip
    imports, up, first = map(float, done.stdout.split())
    parts = f"imports {imports:.1f}, Ray {up:.1f}, first worker and round {first:.1f}"
    whole = imports + up + first
    print(f"start: {whole:.1f} s ({parts}) = {whole / imports:.2f} times the imports (goal 8 s)")


def registered() -> None:
    from benchmarks.registered import idle_rounds

    with tempfile.TemporaryDirectory() as place:
        many, few = idle_rounds(Path(place))
        found = alternating({"10,000 clients": many, "10 clients": few}, 31)
    told("registered", found, "10,000 clients", "10 clients", 1.2)


def main() -> None:
    asked = chosen(__doc__, ["round", "ray", "registered", "start"])
    torch.set_num_threads(1)
    print(machine())
    for name in asked:
        if name in ("round", "ray"):
            rounds(with_ray=name == "ray")
        else:
            {"registered": registered, "start": start}[name]()


if __name__ == "__main__":
    main()
