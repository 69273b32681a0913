"""The suite in short: how far each method is ahead of one of them, in points, a line a setting."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from typing import Any

from experiments.suite.plan import Cell
from experiments.suite.records import Runs
from experiments.suite.tables import paired, reported
from fedsvd.results.compare import Estimate, estimate


def gains(suite: dict[str, Any], runs: Runs, cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a table of the differences to the baseline on the test part, with 95 % intervals.

    They are in points of accuracy, paired over the seeds that both have, whose number follows in
    brackets. The baseline's own column is its accuracy. A dash was not run. A setting without any
    difference is left out.
    """
    methods = list(dict.fromkeys(c.method for c in cells if c.method != suite["baseline"]))
    against = suite["baseline"]
    yield f"| less {against} | epsilon | {' | '.join([against, *methods])} |"
    yield "|---" * (len(methods) + 3) + "|"
    for setting, group in groupby(cells, lambda cell: cell.setting):
        cell = next(group)
        base = reported(runs, cell.of(against))
        apart = [estimate(paired(reported(runs, cell.of(m)), base)) for m in methods]
        if any(apart):
            good = [line["test_accuracy"] for line in base.values() if "failed" not in line]
            told = " | ".join([points(estimate(good), sign=""), *map(points, apart)])
            yield f"| {', '.join(setting[:4])} | {setting[4]} | {told} |"


def points(value: Estimate | None, sign: str = "+") -> str:
    """Return an estimate of a share as points, with the number of values: "+1.5 ± 1.1 (5)"."""
    if value is None:
        return "-"
    half = "" if value.half is None else f" ± {100 * value.half:.1f}"
    return f"{100 * value.mean:{sign}.1f}{half} ({value.n})"
