"""Tables of the suite: each method at its own rate and clip, and the difference to the baseline."""

from collections.abc import Iterator, Sequence
from itertools import groupby
from statistics import fmean
from typing import Any

from experiments.suite.plan import Cell, own_rate
from experiments.suite.records import Runs, best, edges, searched_at
from fedsvd.results.compare import estimate, shown

HEADER = (
    "| method | lr | clip | seeds | round 0 | a quarter | validation | difference | test "
    "| difference | epsilon | failed |"
)


def reported(runs: Runs, cell: Cell) -> dict[int, dict[str, Any]]:
    """Return the reported runs of a cell by seed, at the rate and clip that its search chose."""
    choice = best(runs, cell)
    return {
        key[4]: line
        for key, line in runs.items()
        if key[0] == cell and key[1] == "report" and key[2:4] == choice
    }


def table(suite: dict[str, Any], runs: Runs, cells: Sequence[Cell]) -> Iterator[str]:
    """Yield the lines of a table for every setting of the cells; a star marks an end of the grid."""
    last = None
    for cell in cells:
        choice = best(runs, cell)
        if choice is None:
            continue
        setting = cell.setting
        if setting != last:
            yield from ("", f"**{', '.join(setting[:4])}, epsilon {cell.budget}**", "")
            yield from (HEADER, "|---" * 12 + "|")
            last = setting
        base = reported(runs, cell.of(suite["baseline"]))
        yield _row(suite, runs, cell, choice, reported(runs, cell), base)


def _row(
    suite: dict[str, Any], runs: Runs, cell: Cell, choice: tuple[float, float],
    found: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]],
) -> str:  # fmt: skip
    good = {s: line for s, line in found.items() if "failed" not in line}
    ends = () if own_rate(suite, cell) is not None else edges(runs, cell, choice)
    cells = [
        f"{v:g}{'*' if n in ends else ''}" for n, v in zip(("lr", "clip"), choice, strict=True)
    ]
    cells.append(str(len(good)))
    for share in (0, 0.25):  # what the start alone gives, and a quarter of the rounds
        cells.append(shown(estimate([_after(line["curve"], share) for line in good.values()])))
    for key in ("accuracy", "test_accuracy"):
        cells.append(shown(estimate([line[key] for line in good.values()])))
        apart = estimate(paired(found, base, key))
        cells.append("-" if cell.method == suite["baseline"] else shown(apart, signed=True))
    cells.append(_spent(list(good.values())))
    cells.append(str(len(found) - len(good)))
    return f"| {cell.method} | {' | '.join(cells)} |"


def paired(
    found: dict[int, dict[str, Any]], base: dict[int, dict[str, Any]], key: str = "test_accuracy"
) -> list[float]:
    """Return the differences to the baseline's runs of the same seeds, of what did not fail."""
    both = [s for s in sorted(found) if s in base and not {"failed"} & {*found[s], *base[s]}]
    return [found[s][key] - base[s][key] for s in both]


def _spent(lines: Sequence[dict[str, Any]]) -> str:
    """Return the largest epsilon that a client spent, with a mark if it is above the target."""
    private = [line for line in lines if line["epsilon_max"] is not None]
    above = any(line["epsilon_max"] > line["epsilon_target"] for line in private)
    spent = max((line["epsilon_max"] for line in private), default=None)
    return "-" if spent is None else f"{spent:.3f}{' (above)' if above else ''}"


def searched(suite: dict[str, Any], runs: Runs, cells: Sequence[Cell]) -> Iterator[str]:
    """Yield what the search found: the mean validation accuracy at every rate and clip tried.

    A column is what a study with one rate and clip for all methods would report.
    """
    for setting, group in groupby(cells, lambda cell: cell.setting):
        tried = [cell for cell in group if searched_at(runs, [cell])]
        if not tried:
            continue
        grid = searched_at(runs, tried)
        yield from ("", f"**{', '.join(setting[:4])}, epsilon {setting[4]}**", "")
        yield f"| method | {' | '.join(f'lr {lr:g}, clip {clip:g}' for lr, clip in grid)} |"
        yield "|---" * (len(grid) + 1) + "|"
        for cell in tried:
            scores = [_at(runs, cell, choice) for choice in grid]
            told = " | ".join("-" if s is None else f"{s:.4f}" for s in scores)
            yield f"| {cell.method} | {told} |"


def _at(runs: Runs, cell: Cell, choice: tuple[float, float]) -> float | None:
    """Return the search's mean accuracy at a rate and clip, None if nothing is recorded."""
    lines = [line for key, line in runs.items() if key[:4] == (cell, "search", *choice)]
    scores = [line["accuracy"] for line in lines if line.get("accuracy") is not None]
    return fmean(scores) if scores else None


def _after(curve: dict[str, float], share: float) -> float:
    """Return the accuracy of the evaluation nearest to a share of the rounds."""
    wanted = share * max(map(int, curve))
    return curve[min(curve, key=lambda round: abs(int(round) - wanted))]
