"""python -m benchmarks.cluster [workers] [sweep] [memory]: what workers give, what clients cost.

workers: a round of the default task, six clients, one worker of one thread against two.
sweep: six short trials with hydra/launcher=ray on two CPUs against one after another.
memory: peak memory of a run with 10,000 registered clients against 10, ten of them a round.
"""

import csv
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from pathlib import Path

from benchmarks.common import chosen

PROBE = """
import resource, sys
from fedsvd.run import main
status = main(sys.argv[1:])
print("PEAK", resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024)
sys.exit(status)
"""


def command(*arguments: str, probe: bool = False) -> str:
    program = ["-c", PROBE] if probe else ["-m", "fedsvd.run"]
    done = subprocess.run(
        [sys.executable, *program, *arguments], check=True, capture_output=True, text=True,
        env={k: v for k, v in os.environ.items() if k != "RAY_ADDRESS"},
    )  # fmt: skip
    return done.stdout


def workers(folder: Path) -> None:
    medians = {}
    for number in (1, 2):
        out = folder / f"workers{number}"
        command(
            "+experiment=dp_eps1", "rounds=7", "clients.per_round=6", "engine=ray",
            f"engine.workers={number}", "engine.threads=1", "recorder.evaluate_every=100",
            f"hydra.run.dir={out}",
        )  # fmt: skip
        lines = [json.loads(x) for x in (out / "metrics.jsonl").read_text().splitlines()]
        # Without the round in which the workers start and build their models.
        medians[number] = statistics.median(m["train_seconds"] for m in lines if m["round"] > 1)
        print(f"round with {number} worker{'s' * (number - 1)}: {medians[number]:.2f} s")
    print(f"one worker over two: {medians[1] / medians[2]:.2f}")


def sweep(folder: Path) -> None:
    seconds = {}
    for launcher in ("basic", "ray"):
        began = time.perf_counter()
        command(
            "-m", "+experiment=dp_eps1", "rounds=5", "recorder.evaluate_every=100",
            "seed=0,1,2,3,4,5", f"hydra/launcher={launcher}",
            f"hydra.sweep.dir={folder / launcher}",
        )  # fmt: skip
        seconds[launcher] = time.perf_counter() - began
        print(f"six trials, {launcher}: {seconds[launcher]:.0f} s")
    print(f"one after another over hydra/launcher=ray: {seconds['basic'] / seconds['ray']:.2f}")


def memory(folder: Path) -> None:
    texts = folder / "texts"
    texts.mkdir()
    for part, number in (("train", 20000), ("validation", 100), ("test", 100)):
        with (texts / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([f"{part} text number {i}", i % 2] for i in range(number))
    peaks = {}
    for clients in (10, 10000):
        told = command(
            "data=folder", f"data.path={texts}", "data.labels=['0','1']", "data.public_size=20000",
            "partition=iid", "partition.min_examples=0", f"clients.number={clients}",
            "clients.per_round=10", "model.head_init=zeros", "rounds=3", "training.local_steps=1",
            "training.batch_size=2", "privacy.accountant=rdp",
            f"hydra.run.dir={folder / str(clients)}", probe=True,
        )  # fmt: skip
        peaks[clients] = float(told.rpartition("PEAK")[2])
        print(f"peak memory with {clients} clients: {peaks[clients]:.0f} MiB")
    print(f"10,000 clients over 10: {peaks[10000] / peaks[10]:.3f}")


if __name__ == "__main__":
    asked = chosen(__doc__, ["workers", "sweep", "memory"])
    with tempfile.TemporaryDirectory() as place:
        for name in asked:
            {"workers": workers, "sweep": sweep, "memory": memory}[name](Path(place))
