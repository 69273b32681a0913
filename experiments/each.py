"""Make every run of a study that its results do not hold yet.

    python -m experiments.each RESULTS.jsonl FOLDER OVERRIDES... < LINES

LINES are "SETTING VARIANT SEED OVERRIDES...", each a run in FOLDER/SETTING/VARIANT/sSEED, recorded as
a line of RESULTS.jsonl. JOBS at a time (default 2), one thread each. It may be stopped and started
again; another RESULTS.jsonl makes all runs anew. A run is a process forked from this one, which has
imported everything, and read and tokenised what the run needs; it is otherwise
`python -m fedsvd.run`. Status 1 if one fails.
"""

import contextlib
import gc
import io
import json
import os
import shutil
import sys
from collections.abc import Callable, Iterable, Iterator
from pathlib import Path

# Read when a process starts, so this one is started anew with them. glibc then keeps freed memory:
# a step's tensors are not faulted in anew.
ENVIRONMENT = {
    "OMP_NUM_THREADS": "1",
    "MALLOC_MMAP_THRESHOLD_": "1000000000",
    "MALLOC_TRIM_THRESHOLD_": "2000000000",
    "TOKENIZERS_PARALLELISM": "false",  # threads do not survive a fork
}
COMMON = ["engine.threads=1"]
_warm: list[str] = []  # what this process has at hand for its forks


def main() -> int:
    results, folder, common = Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3:]
    lines = [line.split() for line in sys.stdin if line.strip()]
    waiting = [line for line in lines if (line[0], line[1], int(line[2])) not in held(results)]
    import peft  # noqa: F401 -- for the runs
    import transformers  # noqa: F401

    import fedsvd.experiment  # noqa: F401
    from experiments.table import add

    failed = 0

    def jobs() -> Iterator[tuple[list[str], Path]]:
        for line in waiting:
            told = [*line[3:], *common, f"seed={line[2]}"]
            warm(told)
            yield told, folder / line[0] / line[1] / f"s{line[2]}"

    def done(at: int, run: Path, status: int) -> None:
        nonlocal failed
        line = waiting[at]
        if status == 0:
            add(results, run, line[0], line[1], int(line[2]))
        else:
            failed += 1
            print(f"failed: {run}.log", flush=True)

    forked(jobs(), done)
    return 1 if failed else 0


def forked(jobs: Iterable[tuple[list[str], Path]], done: Callable[[int, Path, int], None]) -> None:
    """Make runs of (overrides, folder), JOBS at a time; `done` gets (number, folder, status)."""
    running: dict[int, tuple[int, Path]] = {}
    most = int(os.environ.get("JOBS", "2"))
    for number, (arguments, run) in enumerate(jobs):
        if len(running) >= most:
            _wait(running, done)
        child = os.fork()
        if child == 0:
            os._exit(one(arguments, run))
        running[child] = number, run
    while running:
        _wait(running, done)


def warm(told: list[str]) -> None:
    """Have this process read, tokenise and build what a run needs, for all that are forked from it.

    Nothing is done where that is of the data and model of the last call. What is wrong with a run, it
    says itself.
    """
    from fedsvd.client.worker import forget, read_ahead
    from fedsvd.composing import settings_of
    from fedsvd.errors import InputError
    from fedsvd.surroundings import as_found

    with as_found(), contextlib.redirect_stderr(io.StringIO()), contextlib.suppress(InputError):
        settings = settings_of([*told, *COMMON])
        key = repr((settings.data, settings.model, settings.training.precision))
        if key in _warm:
            return
        _warm[:] = [key]
        gc.unfreeze()
        read_ahead(settings)
        forget()
        gc.collect()
        gc.freeze()  # what a fork's collector leaves alone is not copied


def _wait(running: dict[int, tuple[int, Path]], done: Callable[[int, Path, int], None]) -> None:
    child, status = os.wait()
    done(*running.pop(child), status)


def restarted(module: str) -> None:
    """Start this process anew as `module` unless it has the environment that runs need."""
    if any(os.environ.get(name) != value for name, value in ENVIRONMENT.items()):
        os.environ.update(ENVIRONMENT)
        os.execv(sys.executable, [sys.executable, "-m", module, *sys.argv[1:]])


def held(results: Path) -> set[tuple[str, str, int]]:
    """Return (setting, variant, seed) of each run that is recorded."""
    if not results.exists():
        return set()
    found = [json.loads(line) for line in results.read_text(encoding="utf-8").splitlines()]
    return {(run["setting"], run["variant"], run["seed"]) for run in found}


def one(arguments: list[str], run: Path) -> int:
    """Make a run in this process, its output in a file beside its folder; return its status."""
    from fedsvd.run import main as run_main

    shutil.rmtree(run, ignore_errors=True)
    run.parent.mkdir(parents=True, exist_ok=True)
    log = os.open(f"{run}.log", os.O_WRONLY | os.O_CREAT | os.O_TRUNC)
    for stream in (1, 2):
        os.dup2(log, stream)
    status = run_main([*arguments, *COMMON, f"hydra.run.dir={run}"])
    sys.stdout.flush()
    sys.stderr.flush()
    return status


if __name__ == "__main__":
    restarted("experiments.each")
    sys.exit(main())
