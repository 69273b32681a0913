"""The report of folders of runs: figures against epsilon and bytes, a table of groups, the runs."""

import math
from collections.abc import Sequence
from pathlib import Path

from fedsvd.files import write_text
from fedsvd.objectives.metric import Metric
from fedsvd.pages import VARIABLES, page, plot
from fedsvd.results.collect import TEST, Group, find_runs, group_runs, metric_of_groups
from fedsvd.results.compare import Row, compare, shown
from fedsvd.results.figures import budget_figure, key, traffic_figure


def headings(metric: Metric) -> list[str]:
    """Return the heads of the table's columns."""
    figures = [f"validation {metric.title}", f"test {metric.title}"]
    if metric.name.startswith(TEST):
        figures = figures[1:]
    return ["group", "seeds", "epsilon spent", "MB sent", *figures, "difference"]


def cells(row: Row, metric: Metric) -> list[str]:
    """Return a row of the table as texts, in the order of `headings`."""
    spent = "-" if row.epsilon_max is None else f"{row.epsilon_max:.3f}"
    if row.epsilon_max is not None and row.epsilon_max > (row.epsilon_target or math.inf):
        spent += f", target {row.epsilon_target:g}"  # a published recipe's accounting
    sent = "-" if row.bytes is None else f"{row.bytes / 1e6:.1f}"
    figures = [shown(row.figure)]
    if not metric.name.startswith(TEST):
        figures.append(shown(row.test_figure))
    return [row.name, row.seeds, spent, sent, *figures, shown(row.difference, signed=True)]


def report_sweep(folder: Path) -> Path:
    """Write report.html of the finished runs in a sweep's folder, without a baseline."""
    groups = group_runs(find_runs(folder)[0])
    path = folder / "report.html"
    write_sweep_report(path, folder.resolve().name, groups, compare(groups), None)
    return path


def write_sweep_report(
    path: Path, title: str, groups: Sequence[Group], rows: Sequence[Row], baseline: str | None,
    metric: Metric | None = None,
) -> None:  # fmt: skip
    """Write a self-contained page; every text from folders and configurations is escaped."""
    metric = metric or metric_of_groups(groups)
    budget = budget_figure(groups, metric, named=False)
    traffic, best = traffic_figure(groups, rows, metric)
    name = headings(metric)[4]
    figures = []
    if budget is not None:
        note = (
            f"Means over seeds of the final {name}; bands are their 95 % confidence intervals by "
            "Student's t, where there is more than one seed. Epsilon is on a logarithmic axis; "
            "dashed lines are without privacy."
        )
        drawn = plot(budget, f"{name} against epsilon, a line for each method")
        figures.append({"title": f"{metric.title.capitalize()} against epsilon", "plot": drawn,
                        "note": note})  # fmt: skip
    if traffic is not None:
        note = (
            "Filled markers are Pareto-optimal: no other group is as good in metric, bytes "
            "and epsilon, and better in one. The line is the best that so many bytes buy at any "
            "epsilon."
        )
        drawn = plot(traffic, f"{name} against megabytes sent, with the Pareto line")
        figures.append({"title": f"{metric.title.capitalize()} against what is sent",
                        "plot": drawn, "note": note})  # fmt: skip
    runs = [
        {"group": g.name, "folder": str(r.folder), "seed": r.seed, "summary": r.summary}
        for g in groups
        for r in g.runs
    ]
    colours = [{**one, "colour": VARIABLES[one["colour"]]} for one in key(groups, metric)]
    text = page(
        __package__, "sweep.html", title=title, headings=headings(metric), metric=metric,
        rows=[cells(row, metric) for row in rows], best=best, runs=runs, baseline=baseline,
        figures=figures, key=colours, name=name,
    )  # fmt: skip
    write_text(path, text)
