"""python -m benchmarks.memory [NAME ...]: what `--plan` says beside what a run's process takes.

Every case is planned and run in processes of their own; the peak is the system's (ru_maxrss).
SmolLM2 needs `python -m fedsvd.tasks squad_qa smollm2`. Without names all cases run.
"""

import argparse
import os
import subprocess
import sys
import tempfile

SHORT = [
    "rounds=1", "training.local_steps=1", "clients.number=2", "clients.per_round=1",
    "privacy.accountant=rdp", "recorder.test=false", "engine.threads=1",
    "partition.min_examples=0",
]  # fmt: skip
QA = [
    "task=causal", "data=squad_qa", "model=smollm2", "data.limit=40", "data.limit_evaluation=2",
    "partition=iid", "training.microbatch_tokens=768", "training.batch_size=4",
    "privacy=none", *SHORT,
]  # fmt: skip
CASES = {
    "default": [*SHORT, "data.limit=600", "recorder.evaluate_examples=100"],
    "smollm2": QA,
    "smollm2, again": [*QA, "training.gradient_checkpointing=true"],
    "smollm2, bf16": [*QA, "training.gradient_checkpointing=true", "model.dtype=bfloat16"],
}


def planned(overrides: list[str]) -> float:
    """Return the peak that the plan says, in MiB."""
    command = [sys.executable, "-m", "fedsvd.run", *overrides, "--plan"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    line = next(x for x in done.stdout.splitlines() if x.startswith("peak"))
    return float(line.split()[1].replace(",", ""))


def measured(overrides: list[str]) -> float:
    """Return the peak of a run's process, in MiB."""
    with tempfile.TemporaryDirectory() as folder:
        command = [sys.executable, "-m", "fedsvd.run", *overrides, f"hydra.run.dir={folder}/run"]
        process = subprocess.Popen(command, stdout=subprocess.DEVNULL)
        _, status, usage = os.wait4(process.pid, 0)
        process.returncode = os.waitstatus_to_exitcode(status)
    if process.returncode:
        raise SystemExit(f"{' '.join(command)} ended with {process.returncode}")
    return usage.ru_maxrss / 1024


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("names", nargs="*", choices=[*CASES, []], metavar="NAME")
    print(f"{'case':24}{'planned':>12}{'measured':>12}{'ratio':>8}")
    for name in parser.parse_args().names or CASES:
        said, found = planned(CASES[name]), measured(CASES[name])
        print(f"{name:24}{said:>8,.0f} MiB{found:>8,.0f} MiB{said / found:>8.2f}", flush=True)


if __name__ == "__main__":
    main()
