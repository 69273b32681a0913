"""python -m benchmarks.quickstart [EXPERIMENT] [--avx2] [KEY=VALUE ...]: where a run's time goes.

Runs the command once, by default the quickstart, and prints the shares of start, training, evaluation
and the rest: of the processor's time, which other jobs move less, and of the clock. `--avx2` is like
a processor without AVX-512 and bf16. The goals: 60 s on two cores, evaluation at most 0.15 of the
run, its first round within 10 s.
"""

import argparse
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

OLD = {
    "ATEN_CPU_CAPABILITY": "avx2", "ONEDNN_MAX_CPU_ISA": "AVX2", "MKL_ENABLE_INSTRUCTIONS": "AVX2",
}  # fmt: skip
PARTS = ("start", "training", "evaluation", "rest")
CLOCKS = {"processor": time.process_time, "clock": time.perf_counter}


class Meter:
    """Seconds by part, of both clocks: what lies between two calls of `at`."""

    def __init__(self) -> None:
        self.parts = {part: dict.fromkeys(CLOCKS, 0.0) for part in PARTS}
        self.now, self.first = "start", 0.0
        # A process's own clock begins with it; the other one when the parent started it.
        self.last = {"processor": 0.0, "clock": time.perf_counter() - _age()}
        self.began = self.last["clock"]

    def at(self, part: str) -> str:
        """Count what has passed to the part it was in, go over to `part`, return the former."""
        former, self.now = self.now, part
        for name, clock in CLOCKS.items():
            value = clock()
            self.parts[former][name] += value - self.last[name]
            self.last[name] = value
        return former

    def within(self, function: Any, part: str) -> Any:
        """Return the function with its time counted to `part`."""

        def call(*args: Any, **kwargs: Any) -> Any:
            former = self.at(part)
            if part == "training" and not self.first:
                self.first = self.last["clock"] - self.began
            try:
                return function(*args, **kwargs)
            finally:
                self.at(former)

        return call


def _age() -> float:
    return time.time() - float(os.environ["BEGAN"])


def measured(arguments: list[str]) -> None:
    """Run the command in this process and print the shares."""
    meter = Meter()
    from fedsvd import experiment
    from fedsvd.rounds import evaluation
    from fedsvd.run import main

    train = experiment.train

    def rounds(*args: Any, **kwargs: Any) -> Any:
        meter.at("rest")
        return train(*args, **kwargs)

    experiment.train = rounds
    experiment.one_round = meter.within(experiment.one_round, "training")
    experiment.evaluated = meter.within(experiment.evaluated, "evaluation")
    evaluation.evaluate = meter.within(evaluation.evaluate, "evaluation")
    status = main(arguments)
    meter.at("end")
    if status:
        sys.exit(status)
    for name in CLOCKS:
        total = sum(seconds[name] for seconds in meter.parts.values())
        shares = "  ".join(f"{p} {s[name] / total:.3f}" for p, s in meter.parts.items())
        print(f"{name:10}{shares}  of {total:.1f} s")
    print(f"the first round begins after {meter.first:.1f} s of the clock")


def main() -> None:
    """Start the run in a process of its own, so that its start is that of the command."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("experiment", nargs="?", default="quickstart")
    parser.add_argument("--avx2", action="store_true")
    given, more = parser.parse_known_args()
    if "=" in given.experiment:
        given.experiment, more = "quickstart", [given.experiment, *more]
    environment = {**os.environ, **(OLD if given.avx2 else {}), "BEGAN": repr(time.time())}
    precision = ["training.precision=fp32"] if given.avx2 else []
    with tempfile.TemporaryDirectory() as folder:
        run = [f"+experiment={given.experiment}", f"hydra.run.dir={Path(folder) / 'run'}"]
        program = "import sys; from benchmarks.quickstart import measured; measured(sys.argv[1:])"
        command = [sys.executable, "-c", program, *run, *precision, *more]
        sys.exit(subprocess.run(command, env=environment, check=False).returncode)


if __name__ == "__main__":
    main()
