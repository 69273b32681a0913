"""python -m experiments.suite STAGE --tasks T --models M [--budgets ...]: the benchmark's runs.

Stages: search (every method on the one grid, on seeds that are not reported), refine (each method at
half and at twice the rate that is best so far, on the same seeds, until both were tried), report
(each method at what its search chose, on the reported seeds; the test part is read once a run), table
(print), gains (print the differences on the test part alone, in points, a line a setting), rates
(print what the search found at every rate), cost (print how long the recorded runs took), figure
(draw curves and test differences as --out FILE.svg).
What is recorded in --results is not made again. JOBS at a time (default 2), one thread each.
--lr RATE makes no other runs than those at this rate, and looks at no others: with it, report and
table are those of a study with one rate for all methods.
--seeds N takes the first N reported seeds, and --seeds A,B,C these: so a result can be checked on
seeds that nobody has looked at. Without a choice of names, all of suite.yaml's are meant.
"""

import argparse
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.each import forked, restarted, warm
from experiments.suite.cost import cost
from experiments.suite.figures import draw
from experiments.suite.gains import gains
from experiments.suite.plan import Cell, Trial, cells, grid, load, overrides
from experiments.suite.records import best, neighbours, read, record
from experiments.suite.seeds import only, seeds_of, trouble, wish
from experiments.suite.tables import searched, table

HERE = Path(__file__).parent
PRINTED = {"table": table, "gains": gains, "rates": searched, "cost": cost}
STAGES = ("search", "refine", "report", *PRINTED, "figure")
GROUPS = ("tasks", "models", "clients", "heads", "budgets", "methods")


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status: 1 if a run failed."""
    parser = argparse.ArgumentParser(
        prog="python -m experiments.suite",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("stage", choices=STAGES)
    for group in GROUPS:
        parser.add_argument(f"--{group}", nargs="+", metavar="NAME")
    parser.add_argument(
        "--seeds", type=wish, metavar="N | A,B,...",
        help="the first so many of the reported ones, or these (a single one: 20,)",
    )  # fmt: skip
    parser.add_argument("--lr", type=float, metavar="RATE", help="one for all methods")
    parser.add_argument(
        "--baseline", metavar="METHOD", help="of the differences of table and gains"
    )
    parser.add_argument("--suite", type=Path, default=HERE / "suite.yaml", metavar="FILE")
    parser.add_argument(
        "--results", type=Path, nargs="+", default=[HERE / "results.jsonl"], metavar="FILE",
        help="records that are looked at; new runs are added to the first",
    )  # fmt: skip
    parser.add_argument("--out", type=Path, default=Path("outputs/suite"), metavar="FOLDER")
    given = parser.parse_args(arguments)
    suite = load(given.suite)
    if given.baseline is not None and given.baseline not in suite["methods"]:
        parser.error(f"--baseline: {given.baseline!r} is not in suite.yaml")
    suite["baseline"] = given.baseline or suite["baseline"]
    try:
        chosen = list(cells(suite, **{g: getattr(given, g) for g in GROUPS}))
    except KeyError as error:
        parser.error(str(error.args[0]))
    if (why := trouble(suite, given.seeds, {cell.model for cell in chosen})) is not None:
        parser.error(f"--seeds: {why}")
    makes = given.stage not in (*PRINTED, "figure")
    needed = given.results[1:] if makes else given.results  # the first may be new
    if gone := [str(file) for file in needed if not file.is_file()]:
        parser.error(f"--results: there is no file {', '.join(gone)}")
    runs = only(suite, given.seeds, read(*given.results, lr=given.lr))
    if given.stage == "figure":
        if given.out.suffix != ".svg":
            parser.error(f"--out: {given.out} is not the name of an .svg file")
        drawn = draw(suite, runs, chosen, given.out)
        print(f"{given.out}: {drawn} settings" if drawn else "no reported runs of these names")
        return 0 if drawn else 1
    if given.stage in PRINTED:
        for line in PRINTED[given.stage](suite, runs, chosen):
            print(line)
        return 0
    wanted = missing(suite, given, chosen)
    status = make(suite, given, wanted)
    while given.stage == "refine" and (wanted := missing(suite, given, chosen)):
        status |= make(suite, given, wanted)  # the best may now be another
    return status


def missing(suite: dict, given: argparse.Namespace, chosen: list[Cell]) -> list[Trial]:
    """Return the runs of a stage that are not recorded."""
    runs = read(*given.results, lr=given.lr)
    wanted: list[Trial] = []
    for cell in chosen:
        if given.stage == "search":
            wanted += grid(suite, cell)
        elif (choice := best(runs, cell)) is None:
            print(f"no search yet: {cell.name}", flush=True)
        elif given.stage == "refine":
            wanted += neighbours(suite, runs, cell)
        else:
            seeds = seeds_of(suite, given.seeds, cell.model)
            wanted += [Trial(cell, "report", *choice, seed) for seed in seeds]
    return [t for t in wanted if t.key not in runs and given.lr in (None, t.lr)]


def make(suite: dict, given: argparse.Namespace, wanted: list[Trial]) -> int:
    """Make the runs and record them; return 1 if one fails."""
    print(f"{len(wanted)} runs", flush=True)
    import peft  # noqa: F401 -- for the runs
    import transformers  # noqa: F401

    import fedsvd.experiment  # noqa: F401

    failed = 0

    def jobs() -> Iterator[tuple[list[str], Path]]:
        for trial in wanted:
            told = overrides(suite, trial)
            warm(told)
            name = f"lr{trial.lr:g}-clip{trial.clip:g}-s{trial.seed}"
            yield told, given.out / trial.cell.name / trial.stage / name

    def done(at: int, run: Path, status: int) -> None:
        nonlocal failed
        failed += bool(status)
        record(given.results[0], wanted[at], run, status)
        if status:
            print(f"failed: {run}.log", flush=True)

    forked(jobs(), done)
    return 1 if failed else 0


if __name__ == "__main__":
    restarted("experiments.suite")
    sys.exit(main())
