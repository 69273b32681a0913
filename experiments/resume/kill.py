"""python -m experiments.resume.kill [--kills N]: SIGKILL at random moments, then resume.

Runs the default model for a few short rounds straight through; then, N times, starts the same run,
kills the process at a moment drawn uniformly from the time that the run takes, and lets the same
command go on from what it finds (resume=auto), with further kills at random moments in one of three
trials. Every trial must end with the digest, the ledger and the metrics of the run that nobody
killed. A process is forked from one that has imported everything and built nothing.
"""

import argparse
import contextlib
import json
import os
import signal
import sys
import tempfile
import time
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

SMALL = [
    "data.limit=120", "rounds=4", "training.batch_size=8", "training.local_steps=2",
    "training.precision=fp32", "privacy.accountant=rdp", "partition.alpha=100", "engine.threads=1",
    "recorder.evaluate_every=2", "resume=auto",
]  # fmt: skip
TIMES = (
    "seconds", "setup_seconds", "train_seconds", "evaluate_seconds", "seconds_training",
    "seconds_evaluating",
)  # fmt: skip


def start(folder: Path, overrides: Sequence[str]) -> int:
    """Fork a process that runs (or goes on with) the configuration in `folder`; return its id."""
    sys.stdout.flush()
    child = os.fork()
    if child:
        return child
    status = 1
    with contextlib.suppress(BaseException):
        log = os.open(folder.with_suffix(".log"), os.O_WRONLY | os.O_CREAT | os.O_APPEND)
        os.dup2(log, 1)
        os.dup2(log, 2)
        from fedsvd.run import main

        sys.argv = ["fedsvd"]
        status = main([*overrides, f"hydra.run.dir={folder}"])
    os._exit(status)


def outcome(folder: Path) -> dict[str, Any]:
    """Return what must be the same however often the run was killed."""
    lines = [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]
    summary = json.loads((folder / "summary.json").read_text())
    return {
        "digest": summary["state_digest"],
        "privacy": (folder / "privacy.json").read_text(),
        "metrics": [{k: v for k, v in line.items() if k not in TIMES} for line in lines],
        "summary": {k: v for k, v in summary.items() if k not in TIMES},
    }


def finish(folder: Path, overrides: Sequence[str]) -> None:
    """Let the run go on to its end."""
    _, status = os.waitpid(start(folder, overrides), 0)
    if status != 0:
        raise SystemExit(f"{folder}: status {status}\n{folder.with_suffix('.log').read_text()}")


def trials(
    folder: Path, overrides: Sequence[str], kills: int, seed: int = 0
) -> list[tuple[float, int, bool]]:
    """Return, for every trial, when it was first killed, the round on the disk then, and whether
    what came of it is what comes of the run that nobody killed.
    """
    began = time.monotonic()
    finish(folder / "straight", overrides)
    length, expected = time.monotonic() - began, outcome(folder / "straight")
    rng = np.random.default_rng(seed)
    found = []
    for trial in range(kills):
        run = folder / f"trial{trial}"
        moments = [rng.uniform(0, length) for _ in range(3 if trial % 3 == 2 else 1)]
        rounds = -1
        for moment in moments:
            child = start(run, overrides)
            time.sleep(moment)
            os.kill(child, signal.SIGKILL)
            os.waitpid(child, 0)
            if moment is moments[0]:
                there = sorted(p.stem for p in (run / "checkpoints").glob("round-*.safetensors"))
                rounds = int(there[-1].split("-")[1]) if there else -1
        finish(run, overrides)
        found.append((moments[0], rounds, outcome(run) == expected))
    print(f"straight through: {length:.1f} s, digest {expected['digest'][:16]}")
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--kills", type=int, default=30)
    parser.add_argument("overrides", nargs="*")
    arguments = parser.parse_args()
    import fedsvd.experiment
    import fedsvd.recorders.report  # noqa: F401

    with tempfile.TemporaryDirectory() as folder:
        found = trials(Path(folder), [*SMALL, *arguments.overrides], arguments.kills)
    for trial, (moment, rounds, same) in enumerate(found):
        where = f"after round {rounds}" if rounds >= 0 else "before the first checkpoint"
        print(f"{trial:>3}  killed at {moment:5.1f} s, {where}: {'same' if same else 'DIFFERENT'}")
    wrong = sum(not same for _, _, same in found)
    print(f"{len(found)} trials, {wrong} with another outcome")
    raise SystemExit(1 if wrong else 0)


if __name__ == "__main__":
    main()
