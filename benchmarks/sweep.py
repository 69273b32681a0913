"""python -m benchmarks.sweep [--trials 12] [--steps 4] [VARIANT ...]: short trials of one model.

fresh: a process each, one after another. one: one after another in a process (`-m`). ray: two at a
time with hydra/launcher=ray. each: two at a time with experiments.each. One thread each. Prints
seconds, the ratio to `fresh` and `one`, the seconds that every trial spends before its first step
(`setup_seconds`), and whether all variants give the same bits. squad_pairs and bert_tiny are taken
from FEDSVD_TASKS if they are there, otherwise the default task, limited.
"""

import argparse
import json
import os
import subprocess
import sys
import tempfile
import time
from pathlib import Path

VARIANTS = ("fresh", "one", "ray", "each")


def common(steps: int) -> list[str]:
    """Return what all trials share."""
    place = Path(os.environ.get("FEDSVD_TASKS", "tasks"))
    given = ["data=squad_pairs", "model=bert_tiny"]
    if not all((place / name).is_dir() for name in ("squad_pairs", "bert_tiny")):
        given = ["data.limit=600"]
    return [
        "+experiment=dp_eps1", *given, "rounds=2", f"training.local_steps={steps}",
        "recorder.evaluate_every=100", "recorder.test=false",
    ]  # fmt: skip


def command(*arguments: str, told: str = "", jobs: int = 2) -> None:
    """Run a module in a process without a cluster's address, a thread in each process."""
    left_out = ("RAY_ADDRESS", "PYTHONWARNINGS")
    environment = {k: v for k, v in os.environ.items() if k not in left_out}
    environment.update(OMP_NUM_THREADS="1", JOBS=str(jobs))
    subprocess.run(
        [sys.executable, "-m", *arguments], check=True, input=told, capture_output=True, text=True,
        env=environment,
    )  # fmt: skip


def make(variant: str, rates: list[str], given: list[str], out: Path) -> list[Path]:
    """Make the trials of a variant and return their folders, in order."""
    sweep = ["-m", *given, "engine.threads=1", f"training.lr={','.join(rates)}"]
    sweep.append(f"hydra.sweep.dir={out}")
    if variant == "fresh":
        for number, rate in enumerate(rates):
            own = [f"training.lr={rate}", "engine.threads=1", f"hydra.run.dir={out / str(number)}"]
            command("fedsvd.run", *given, *own)
    elif variant == "one":
        command("fedsvd.run", *sweep)
    elif variant == "ray":
        command("fedsvd.run", *sweep, "hydra/launcher=ray", "hydra.launcher.concurrent=2")
    else:
        lines = "\n".join(f"a {i} 0 training.lr={rate}" for i, rate in enumerate(rates))
        out.mkdir()
        command("experiments.each", str(out / "results.jsonl"), str(out), *given, told=lines)
        return [out / "a" / str(i) / "s0" for i in range(len(rates))]
    return [out / str(i) for i in range(len(rates))]


def main() -> None:
    parser = argparse.ArgumentParser(prog="python -m benchmarks.sweep", description=__doc__)
    parser.add_argument("variants", nargs="*", metavar="VARIANT", help=", ".join(VARIANTS))
    parser.add_argument("--trials", type=int, default=12)
    parser.add_argument("--steps", type=int, default=4, help="local steps of a client in a round")
    given = parser.parse_args()
    rates = [f"{0.1 * (i + 1):g}" for i in range(given.trials)]
    seconds: dict[str, float] = {}
    digests: dict[str, list[str]] = {}
    with tempfile.TemporaryDirectory() as place:
        for variant in given.variants or VARIANTS:
            began, used = time.perf_counter(), sum(os.times()[2:4])
            folders = make(variant, rates, common(given.steps), Path(place) / variant)
            seconds[variant] = time.perf_counter() - began
            used = sum(os.times()[2:4]) - used
            told = [json.loads((f / "summary.json").read_text()) for f in folders]
            digests[variant] = [t["state_digest"] for t in told]
            load = os.getloadavg()[0]
            print(f"{variant}: {seconds[variant]:.1f} s, processor {used:.1f} s, load {load:.1f}")
            before = " ".join(f"{t['setup_seconds']:.2f}" for t in told)
            print(f"  before the first step: {before}", flush=True)
    for baseline in ("fresh", "one"):
        for variant in ("ray", "each"):
            if baseline in seconds and variant in seconds:
                ratio = seconds[baseline] / seconds[variant]
                print(f"{baseline} over {variant}: {ratio:.2f}")
    print(f"same bits: {len({tuple(d) for d in digests.values()}) == 1}")


if __name__ == "__main__":
    main()
