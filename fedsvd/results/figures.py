"""Figures of groups of runs: a metric against epsilon with bands, and against what was sent."""

import math
import textwrap
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from fedsvd.objectives.metric import Metric
from fedsvd.pages import COLOURS, GREY, INK, canvas, label
from fedsvd.results.collect import Group, metric_of_groups, name_of
from fedsvd.results.compare import Estimate, Row, estimate

APART = {"privacy.epsilon", "privacy.noise_multiplier", "privacy.unit", "privacy.name"}
MARKERS = "osD^vPX*"


@dataclass(frozen=True)
class Curve:
    """A line of a figure: groups that differ in epsilon alone, or one without privacy."""

    name: str
    colour: str
    points: Sequence[tuple[float, Estimate]]  # (epsilon, figure), ascending; inf without privacy

    @property
    def private(self) -> bool:
        """Whether it has a budget."""
        return math.isfinite(self.points[0][0])


def curves(groups: Sequence[Group], metric: Metric) -> list[Curve]:
    """Return the groups as curves over epsilon, those without privacy last."""
    found: dict[tuple[bool, str], list[tuple[float, Estimate]]] = {}
    colour: dict[str, str] = {}  # of a method, with and without privacy
    for group in groups:
        value = estimate(list(group.values(metric.name).values()))
        assert value is not None
        at = epsilon_of(group)
        name = name_of({k: v for k, v in group.keys.items() if k not in APART})
        colour.setdefault(name, COLOURS[len(colour) % len(COLOURS)])
        found.setdefault((not math.isfinite(at), name), []).append((at, value))
    ordered = sorted(found.items(), key=lambda item: item[0][0])
    return [
        Curve(name, colour[name], sorted(points, key=lambda point: point[0]))
        for (_, name), points in ordered
    ]


def epsilon_of(group: Group) -> float:
    """Return a group's target, or what was spent where that is more; inf without privacy."""
    targets, spent = group.values("epsilon_target"), group.values("epsilon_max")
    if spent and max(spent.values()) > max(targets.values(), default=0.0):
        targets = spent  # the noise was given, or a recipe's accounting exceeds its target
    return max(targets.values(), default=math.inf)


def budget_figure(groups: Sequence[Group], metric: Metric | None = None, named: bool = True) -> Any:
    """Return the runs' figure against the target epsilon, or None if no group has a budget.

    A line joins the groups that differ in epsilon alone; its band is the 95 % interval of the mean
    over seeds. Groups without privacy are level lines. `named`: with a legend in the figure.
    """
    metric = metric or metric_of_groups(groups)
    drawn = curves(groups, metric)
    if not any(curve.private for curve in drawn):
        return None
    figure, (axis,) = canvas(1)
    for curve in drawn:
        told = curve.name or metric.title
        if curve.private:
            _line(axis, curve, told)
        else:
            _level(axis, curve, f"{told}, no privacy")
    _bounded(axis, metric)
    _ticks(axis, sorted({x for c in drawn if c.private for x, _ in c.points}))
    label(axis, "epsilon", _title(metric))
    if named:
        lines = sum(text.count("\n") + 1 for text in axis.get_legend_handles_labels()[1])
        figure.set_size_inches(4.6, 3.0 + 0.18 * lines)  # the plot keeps its height
        axis.legend(
            frameon=False, fontsize=8, loc="upper left", borderaxespad=0, labelcolor=INK,
            bbox_to_anchor=(0, -0.22),
        )  # fmt: skip
    return figure


def _line(axis: Any, curve: Curve, told: str) -> None:
    at, means = [x for x, _ in curve.points], [e.mean for _, e in curve.points]
    halves = [e.half or 0.0 for _, e in curve.points]
    axis.plot(at, means, color=curve.colour, marker=".", label=_plain(told))
    low = [m - h for m, h in zip(means, halves, strict=True)]
    high = [m + h for m, h in zip(means, halves, strict=True)]
    axis.fill_between(at, low, high, color=curve.colour, alpha=0.15, lw=0)
    axis.vlines(at, low, high, color=curve.colour, lw=1)


def _level(axis: Any, curve: Curve, told: str) -> None:
    value = curve.points[0][1]
    axis.axhline(value.mean, color=curve.colour, lw=1, ls="--", label=_plain(told))
    if value.half is not None:
        span = (value.mean - value.half, value.mean + value.half)
        axis.axhspan(*span, color=curve.colour, alpha=0.1, lw=0)


def _ticks(axis: Any, values: Sequence[float]) -> None:
    """Put epsilon on a logarithmic axis with its own values as ticks, where there are few."""
    if len(values) > 1 and min(values) > 0:
        axis.set_xscale("log")
    if len(values) <= 8:
        axis.set_xticks(values, [f"{x:.3g}" for x in values])
        axis.minorticks_off()


def traffic_figure(
    groups: Sequence[Group], rows: Sequence[Row], metric: Metric
) -> tuple[Any, list[bool]]:
    """Return figure against bytes with epsilon as the marker, and which groups are Pareto-optimal.

    A group is if no other one is at least as good in metric, bytes and epsilon and better in one; its
    marker is filled. The line is the best metric that so many bytes buy, at any epsilon. The figure
    is None where bytes are not known.
    """
    sizes = [row.bytes for row in rows]
    if len(groups) < 2 or any(not size for size in sizes):
        return None, [False] * len(groups)
    points = [
        (float(size or 0), epsilon_of(group), metric.score(row.figure.mean))
        for size, group, row in zip(sizes, groups, rows, strict=True)
    ]
    best = [not any(_beats(other, own) for other in points) for own in points]
    colour = colours_of(groups, metric)
    levels = sorted({epsilon for _, epsilon, _ in points})
    figure, (axis,) = canvas(1)
    front = _front(points)
    axis.step(
        [size / 1e6 for size, _ in front], [metric.score(value) for _, value in front],
        where="post", color=GREY, lw=1, zorder=1,
    )  # fmt: skip
    for (size, epsilon, value), own, group in zip(points, best, groups, strict=True):
        c = colour[group.name]
        axis.plot(
            size / 1e6, metric.score(value), MARKERS[levels.index(epsilon) % len(MARKERS)], ms=7,
            color=c, markerfacecolor=c if own else "none",
        )  # fmt: skip
    for i, epsilon in enumerate(levels[: len(MARKERS)]):
        told = f"epsilon {epsilon:.3g}" if math.isfinite(epsilon) else "no privacy"
        axis.plot([], [], MARKERS[i], color=GREY, label=told)
    axis.plot([], [], color=GREY, lw=1, label="Pareto line")
    low, high = min(sizes, key=float), max(sizes, key=float)  # type: ignore[arg-type]
    if float(high or 1) > 4 * float(low or 1):
        axis.set_xscale("log")
    _bounded(axis, metric)
    label(axis, "sent up and down, MB", _title(metric))
    axis.legend(
        frameon=False, fontsize=9, ncols=3, loc="upper left", bbox_to_anchor=(-0.02, -0.24),
        labelcolor=INK,
    )  # fmt: skip
    return figure, best


def colours_of(groups: Sequence[Group], metric: Metric) -> dict[str, str]:
    """Return the colour of each group: that of its curve."""
    drawn = {c.name: c.colour for c in curves(groups, metric)}
    return {
        group.name: drawn[name_of({k: v for k, v in group.keys.items() if k not in APART})]
        for group in groups
    }


def _beats(other: tuple[float, float, float], own: tuple[float, float, float]) -> bool:
    no_worse = other[0] <= own[0] and other[1] <= own[1] and other[2] >= own[2]
    return no_worse and other != own


def _front(points: Sequence[tuple[float, float, float]]) -> list[tuple[float, float]]:
    """Return (bytes, score) of the points that no point of as few bytes exceeds, ascending."""
    front: list[tuple[float, float]] = []
    for size, _, value in sorted(points, key=lambda p: (p[0], -p[2])):
        if not front or value > front[-1][1]:
            front.append((size, value))
    widest = max(size for size, _, _ in points)
    return [*front, (widest, front[-1][1])]


def _bounded(axis: Any, metric: Metric) -> None:
    """Keep an axis of shares within [0, 1]."""
    if metric.share or metric.name.endswith("macro_f1"):
        low, high = axis.get_ylim()
        axis.set_ylim(max(0.0, low), min(1.0, high))


def _title(metric: Metric) -> str:
    part = "test" if metric.name.startswith("test_") else "validation"
    return f"{part} {metric.title}"


def _plain(text: str) -> str:
    """Return a text that matplotlib draws as it is, in lines of at most 60 columns."""
    lines = textwrap.wrap(text, 60, break_long_words=False, break_on_hyphens=False)
    return "\n".join(lines).replace("$", r"\$")


def key(groups: Sequence[Group], metric: Metric) -> list[Mapping[str, str]]:
    """Return the legend of both figures: a colour and a name for each method."""
    named = {c.name: c.colour for c in curves(groups, metric)}
    return [{"colour": colour, "name": name or metric.title} for name, colour in named.items()]
