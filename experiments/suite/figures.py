"""A figure of the suite: curves over the rounds, and test differences, a row for each setting."""

from collections.abc import Sequence
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.suite.plan import Cell
from experiments.suite.records import Runs
from experiments.suite.tables import paired, reported
from fedsvd.pages import COLOURS, GREY, INK, LOOK, label
from fedsvd.results.compare import estimate


def draw(suite: dict[str, Any], runs: Runs, cells: Sequence[Cell], path: Path) -> int:
    """Write an SVG of all settings that have reported runs; return how many there are.

    Left: validation accuracy by round, the mean of the seeds and its 95 % interval. Right: test
    accuracy minus that of the baseline, paired by seed, with its interval.
    """
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    found: dict[tuple[str, str, str, str, str], list[Cell]] = {}
    for cell in cells:
        if any("failed" not in line for line in reported(runs, cell).values()):
            found.setdefault(cell.setting, []).append(cell)
    if not found:
        return 0
    methods = list(dict.fromkeys(cell.method for group in found.values() for cell in group))
    colours = {name: COLOURS[n % len(COLOURS)] for n, name in enumerate(methods)}
    with rc_context(LOOK):
        figure = Figure(figsize=(9, 2.6 * len(found) + 0.4), layout="constrained")
        axes = figure.subplots(len(found), 2, squeeze=False)
        for (curve, apart), (where, group) in zip(axes, found.items(), strict=True):
            base = reported(runs, group[0].of(suite["baseline"]))
            budget = "no privacy" if where[4] == "none" else f"epsilon {where[4]}"
            curve.set_title(f"{where[0]}, {where[2]} clients, {budget}", fontsize=10)
            for cell in group:
                _curve(curve, list(reported(runs, cell).values()), colours[cell.method])
            others = [cell for cell in group if cell.method != suite["baseline"]]
            apart.axvline(0, color=GREY, lw=1)
            for at, cell in enumerate(others):
                _difference(apart, at, paired(reported(runs, cell), base), colours[cell.method])
            apart.set_yticks(range(len(others)), [cell.method for cell in others])
            apart.set_ylim(len(others) - 0.5, -0.5)
            label(curve, "round", "validation accuracy")
            label(apart, f"test accuracy over {suite['baseline']}, points", "")
        handles = [axes[0][0].plot([], [], color=colours[name], lw=1.6)[0] for name in methods]
        figure.legend(
            handles, methods, loc="outside upper left", ncols=4, frameon=False, labelcolor=INK
        )
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, metadata={"Date": None})
    return len(found)


def _curve(axis: Any, lines: Sequence[dict[str, Any]], colour: str) -> None:
    """Draw the mean over the seeds by round, and its interval."""
    good = [line["curve"] for line in lines if "failed" not in line]
    rounds = sorted(set.intersection(*(set(curve) for curve in good)), key=int)
    at = [int(n) for n in rounds]
    axis.plot(at, [fmean(curve[n] for curve in good) for n in rounds], color=colour, lw=1.6)
    spread = [estimate([curve[n] for curve in good]) for n in rounds]
    if all(e is not None and e.half is not None for e in spread):
        low = [e.mean - e.half for e in spread if e and e.half is not None]
        high = [e.mean + e.half for e in spread if e and e.half is not None]
        axis.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)


def _difference(axis: Any, at: int, apart: Sequence[float], colour: str) -> None:
    """Draw a paired difference in points, and its interval."""
    e = estimate([100 * value for value in apart])
    if e is not None:
        axis.errorbar([e.mean], [at], xerr=[e.half or 0], fmt="o", color=colour, lw=1.6, ms=5)
