"""What the recorded runs of the suite took."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import median
from typing import Any

from experiments.suite.plan import Cell
from experiments.suite.records import Runs

JOBS = 2  # runs at a time, one thread each, as the records were made


def cost(suite: dict[str, Any], runs: Runs, cells: Sequence[Cell]) -> Iterator[str]:
    """Yield a table of the time of the recorded runs: a line a method, and the sum of a setting.

    Minutes are those of two runs at a time: half the sum of their seconds. Failed runs have no time
    and are counted apart.
    """
    yield "| setting | epsilon | method | runs | failed | seconds, median | minutes, 2 at a time |"
    yield "|---" * 7 + "|"
    for setting, group in groupby(cells, lambda cell: cell.setting):
        found = {cell.method: _runs(runs, cell) for cell in group}
        told = {method: lines for method, lines in found.items() if lines}
        if len(told) > 1:
            told["all"] = [line for lines in told.values() for line in lines]
        for method, lines in told.items():
            yield f"| {', '.join(setting[:4])} | {setting[4]} | {method} | {_row(lines)} |"


def _runs(runs: Runs, cell: Cell) -> list[dict[str, Any]]:
    return [line for key, line in runs.items() if key[0] == cell]


def _row(lines: Sequence[dict[str, Any]]) -> str:
    took = [line["seconds"] for line in lines if "failed" not in line]
    middle = f"{median(took):.0f}" if took else "-"
    return f"{len(took)} | {len(lines) - len(took)} | {middle} | {sum(took) / JOBS / 60:.0f}"
