"""The report of a folder of runs: table, and figures against epsilon with bands."""

import math
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsvd.files import write_text
from fedsvd.objectives.metric import Metric
from fedsvd.pages import BLUE, GREY, ORANGE, canvas, label, page, svg
from fedsvd.results.collect import Group, find_runs, group_runs, metric_of_groups, name_of
from fedsvd.results.compare import Row, compare, estimate, shown

COLOURS = (BLUE, ORANGE, "#3a7d44", "#7a4fa3", "#b03a48", "#4f8a8b", GREY)


def headings(metric: Metric) -> list[str]:
    """Return the heads of the table's columns."""
    figures = [f"validation {metric.title}", f"test {metric.title}"]
    return ["group", "seeds", "epsilon spent", *figures, "difference"]


def cells(row: Row) -> list[str]:
    """Return a row of the table as texts, in the order of `headings`."""
    spent = "-" if row.epsilon_max is None else f"{row.epsilon_max:.3f}"
    if row.epsilon_max is not None and row.epsilon_max > (row.epsilon_target or math.inf):
        spent += f", target {row.epsilon_target:g}"  # a published recipe's accounting
    return [
        row.name, row.seeds, spent, shown(row.figure), shown(row.test_figure),
        shown(row.difference, signed=True),
    ]  # fmt: skip


def report_sweep(folder: Path) -> Path:
    """Write report.html of the finished runs in a sweep's folder, without a baseline."""
    groups = group_runs(find_runs(folder)[0])
    path = folder / "report.html"
    write_sweep_report(path, folder.resolve().name, groups, compare(groups), None)
    return path


def write_sweep_report(
    path: Path, title: str, groups: Sequence[Group], rows: Sequence[Row], baseline: str | None
) -> None:
    """Write a self-contained page; every text from folders and configurations is escaped."""
    drawn, metric = budget_figure(groups), metric_of_groups(groups)
    runs = [
        {"group": g.name, "folder": str(r.folder), "seed": r.seed, "summary": r.summary}
        for g in groups
        for r in g.runs
    ]
    text = page(
        __package__, "sweep.html", title=title, headings=headings(metric), metric=metric,
        rows=[cells(row) for row in rows], runs=runs, baseline=baseline,
        figure=None if drawn is None else svg(drawn),
    )  # fmt: skip
    write_text(path, text)


def budget_figure(groups: Sequence[Group]) -> Any:
    """Return the runs' figure against the target epsilon, or None if no group has a budget.

    A line joins the groups that differ in epsilon alone; its band is the 95 % interval of the mean
    over seeds. Groups without privacy are level lines.
    """
    metric = metric_of_groups(groups)
    curves: dict[str, list[tuple[float, Any]]] = {}
    levels: list[tuple[str, Any]] = []
    for group in groups:
        value = estimate(list(group.values(metric.name).values()))
        targets, spent = group.values("epsilon_target"), group.values("epsilon_max")
        if spent and max(spent.values()) > max(targets.values(), default=0.0):
            targets = spent  # the noise was given, or a recipe's accounting exceeds its target
        if not targets:
            levels.append((group.name, value))
            continue
        budget = {"privacy.epsilon", "privacy.noise_multiplier"}
        rest = {k: v for k, v in group.keys.items() if k not in budget}
        curves.setdefault(name_of(rest), []).append((max(targets.values()), value))
    if not curves:
        return None
    figure, (axis,) = canvas(1)
    colours = [COLOURS[i % len(COLOURS)] for i in range(len(curves) + len(levels))]
    for (name, found), colour in zip(curves.items(), colours, strict=False):
        points = sorted(found, key=lambda point: point[0])
        at, means = [x for x, _ in points], [e.mean for _, e in points]
        halves = [e.half or 0.0 for _, e in points]
        axis.plot(at, means, color=colour, marker=".", label=_plain(name or metric.title))
        low = [m - h for m, h in zip(means, halves, strict=True)]
        high = [m + h for m, h in zip(means, halves, strict=True)]
        axis.fill_between(at, low, high, color=colour, alpha=0.15, lw=0)
        axis.vlines(at, low, high, color=colour, lw=1)
    for (name, value), colour in zip(levels, colours[len(curves) :], strict=True):
        axis.axhline(value.mean, color=colour, lw=1, ls="--", label=_plain(f"no privacy: {name}"))
        if value.half is not None:
            span = (value.mean - value.half, value.mean + value.half)
            axis.axhspan(*span, color=colour, alpha=0.1, lw=0)
    label(axis, "epsilon", f"validation {metric.title}")
    axis.legend(frameon=False, fontsize=8)
    return figure


def _plain(text: str) -> str:
    """Return a text that matplotlib draws as it is."""
    short = text if len(text) <= 60 else text[:57] + "..."
    return short.replace("$", r"\$")
