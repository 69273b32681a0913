"""python -m benchmarks.engines [--skip-flower]: a no-op round through every engine.

3 of 6 clients with 1.6 MB, 50 of 1,000 and 50 of 10,000 clients with 10 kB, each
way, and what Ray's object store gets. Baseline: inline. Ray has two workers of one CPU. Flower's
runtime is its own simulation in a process of its own.
"""

import argparse
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterable
from typing import Any

import ray
from flwr.app import Context
from flwr.serverapp import Grid

from benchmarks.common import machine, table
from benchmarks.noop import noop_app, round_of
from fedsvd.engines.inline import InlineGrid
from fedsvd.engines.ray import RayGrid
from fedsvd.settings import EngineSettings

CASES = [(6, 3, 1638.4), (1000, 50, 10.0), (10000, 50, 10.0)]  # clients, a round, kB


def timed(
    one: Callable[[Iterable[int]], None], choose: Callable[[int], list[int]], repeats: int,
    least: float = 0.0,
) -> float:  # fmt: skip
    """Return the median seconds of a round, after two warm ones and `least` seconds of them."""
    began, times = time.perf_counter(), []
    for number in range(repeats):
        if number < 2 or time.perf_counter() - began < least:
            one(choose(0))
    for number in range(repeats):
        nodes = choose(number)
        start = time.perf_counter()
        one(nodes)
        times.append(time.perf_counter() - start)
    return statistics.median(times)


def chosen(clients: int, per_round: int) -> Callable[[int], list[int]]:
    step = clients // per_round
    return lambda number: [(k * step + number) % clients for k in range(per_round)]


def stored() -> int:
    """Return the bytes that the object stores of all nodes have been given so far."""
    from ray._private.internal_api import get_memory_info_reply, get_state_from_address

    state = get_state_from_address(ray.get_runtime_context().gcs_address)
    return get_memory_info_reply(state).store_stats.cumulative_created_bytes


def ours(repeats: int) -> dict[tuple, dict[str, float]]:
    found: dict[tuple, dict[str, float]] = {}
    ray.init(num_cpus=2, log_to_driver=False, include_dashboard=False)
    for case in CASES:
        clients, per_round, kilobytes = case
        inline = InlineGrid(noop_app(), clients)
        choose = chosen(clients, per_round)
        one = round_of(kilobytes, inline.send_and_receive)
        found[case] = {"inline": timed(one, choose, repeats)}
        grid = RayGrid(noop_app, clients, EngineSettings("ray", workers=2), [1.0] * clients)
        one = round_of(kilobytes, grid.send_and_receive)
        while len(grid._idle) < 2:  # both workers are up
            one(choose(0))
        found[case]["ray, 2 workers"] = timed(one, choose, repeats)
        before = stored()
        for number in range(10):
            one(choose(number))
        found[case]["stored"] = (stored() - before) / 10
        grid.close()
    ray.shutdown()
    return found


def flower(case: tuple, repeats: int) -> float:
    """Return a round's median seconds in Flower's simulation, run in a process of its own."""
    with tempfile.TemporaryDirectory() as folder:
        subprocess.run(
            [sys.executable, "-m", "benchmarks.engines", "--flower-case", json.dumps(case),
             str(repeats), f"{folder}/median"],
            check=True, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL, timeout=900,
            env={**os.environ, "RAY_ADDRESS": "local", "FLWR_TELEMETRY_ENABLED": "0"},
        )  # fmt: skip
        with open(f"{folder}/median") as file:
            return float(file.read())


def flower_case(case: list, repeats: int, path: str) -> None:
    from flwr.serverapp import ServerApp
    from flwr.simulation import run_simulation

    clients, per_round, kilobytes = case
    app = ServerApp()

    @app.main()
    def main(grid: Grid, context: Context) -> None:
        while len(nodes := sorted(grid.get_node_ids())) < clients:
            time.sleep(0.1)
        choose = chosen(clients, per_round)
        one = round_of(kilobytes, grid.send_and_receive)
        median = timed(one, lambda number: [nodes[k] for k in choose(number)], repeats)
        with open(path, "w") as file:
            file.write(str(median))

    resources: Any = {"client_resources": {"num_cpus": 1}, "init_args": {"num_cpus": 2}}
    run_simulation(app, noop_app(), clients, backend_config=resources)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--repeats", type=int, default=51)
    parser.add_argument("--skip-flower", action="store_true")
    parser.add_argument("--flower-case", nargs=3, help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.flower_case:
        case, repeats, path = given.flower_case
        flower_case(json.loads(case), int(repeats), path)
        return
    print(machine())
    for case, seconds in ours(given.repeats).items():
        clients, per_round, kilobytes = case
        size = seconds.pop("stored")
        if not given.skip_flower:
            seconds["Flower's simulation"] = flower(case, max(5, given.repeats // 5))
        table(
            f"No-op round, {per_round} of {clients} clients, {kilobytes:g} kB each way", seconds,
            "inline",
        )  # fmt: skip
        print(
            f"Ray's object store: {size / 1e3:.1f} kB a round, {size / 1e3 / kilobytes:.2f} times"
        )


if __name__ == "__main__":
    main()
