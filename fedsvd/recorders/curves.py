"""The figures of a run over its rounds: metric and loss, epsilon, gradient norms."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from fedsvd.objectives.metric import Metric
from fedsvd.pages import BLUE, COLOURS, GREY, INK, ORANGE, canvas, label, legend, plot
from fedsvd.privacy.plan import PrivacyPlan

History = Sequence[Mapping[str, Any]]
Figure = dict[str, Any]  # title, plots (SVG elements), note
FEW = 8  # clients that get a line each


def figure_of(title: str, plots: Sequence[str], note: str = "") -> Figure:
    """Return a figure of a page: its title, its plots side by side, what is said of it."""
    return {"title": title, "plots": list(plots), "note": note}


def metric_and_loss(history: History, metric: Metric, base: float | None) -> Figure:
    """Return metric and loss by round; `base` is what the most frequent label alone would reach."""
    scored = [m for m in history if metric.name in m]
    last = next((m for m in reversed(scored) if f"subset_{metric.name}" in m), None)
    note = ""
    if last is not None:
        note = (
            f"The lines of validation are on the same {last['subset_examples']} of its "
            f"{last['examples']} examples in every round; the square is on all of them."
        )
    plots = [_metric(scored, last, metric, base), _loss(history, scored, last)]
    return figure_of(f"{metric.title.capitalize()} and loss", plots, note)


def _metric(
    scored: History, last: Mapping[str, Any] | None, metric: Metric, base: float | None
) -> str:
    name, rounds = metric.name, [m["round"] for m in scored]
    values = [_same_rows(m, name) for m in scored]
    figure, (axis,) = canvas(1)
    axis.plot(rounds, values, color=BLUE, marker=".", label="validation")
    raw = [(m["round"], m[f"raw_{name}"]) for m in scored if f"raw_{name}" in m]
    if raw:
        axis.lines[0].set_label("average of models")
        axis.plot(*zip(*raw, strict=True), color=GREY, lw=1, label="last model")
    if last is not None:
        told = f"all {last['examples']}"
        axis.plot([last["round"]], [last[name]], "s", color=INK, ms=5, label=told)
    if base is not None:
        axis.axhline(base, color=GREY, lw=1, ls="--", label=f"most frequent label ({base:.3f})")
    if metric.share:
        low, high = axis.get_ylim()
        axis.set_ylim(max(0.0, low), min(1.0, high))
    label(axis, "round", f"validation {metric.title}")
    legend(axis, 2)
    said = f"Validation {metric.title} by round, from {values[0]:.4g} to {values[-1]:.4g}"
    return plot(figure, said)


def _loss(history: History, scored: History, last: Mapping[str, Any] | None) -> str:
    values = [_same_rows(m, "loss") for m in scored]
    figure, (axis,) = canvas(1)
    rounds = [m["round"] for m in scored]
    axis.plot(rounds, values, color=BLUE, marker=".", label="validation")
    if last is not None:
        told = f"all {last['examples']}"
        axis.plot([last["round"]], [last["loss"]], "s", color=INK, ms=5, label=told)
    trained = [(m["round"], m["train_loss"]) for m in history if m.get("train_loss")]
    if trained:
        axis.plot(*zip(*trained, strict=True), color=ORANGE, lw=1, label="clients, mean")
    label(axis, "round", "cross-entropy")
    legend(axis, 3)
    said = f"Validation loss by round, from {values[0]:.4g} to {values[-1]:.4g}"
    return plot(figure, said)


def _same_rows(metrics: Mapping[str, Any], key: str) -> float:
    """Return a round's figure on the rows that all rounds are evaluated on."""
    return float(metrics.get(f"subset_{key}", metrics[key]))


def epsilon(history: History, plan: PrivacyPlan) -> Figure | None:
    """Return what clients have spent by round: a line each of few, quantiles of many."""
    spent = [(m["round"], m["epsilon"]) for m in history if m.get("epsilon")]
    if not plan.private or not spent:
        return None
    figure, (axis,) = canvas(1)
    rounds = [number for number, _ in spent]
    values = np.array([[float(e[str(c.client)] or 0.0) for c in plan.clients] for _, e in spent])
    if len(plan.clients) <= FEW:
        for at, client in enumerate(plan.clients):
            colour, told = COLOURS[at % len(COLOURS)], f"client {client.client}"
            axis.step(rounds, values[:, at], where="post", lw=1.2, color=colour, label=told)
    else:
        least, low, middle, high, most = np.quantile(values, [0, 0.25, 0.5, 0.75, 1], axis=1)
        bands = ((least, most, 0.15, "all clients"), (low, high, 0.3, "middle half"))
        for bottom, top, alpha, told in bands:
            axis.fill_between(
                rounds, bottom, top, step="post", color=BLUE, alpha=alpha, lw=0, label=told
            )
        axis.step(rounds, middle, where="post", color=BLUE, lw=1.4, label="median")
        axis.step(rounds, most, where="post", color=ORANGE, lw=1, label="largest")
    if plan.epsilon is not None:
        axis.axhline(plan.epsilon, color=INK, lw=1, ls="--", label="target")
    axis.set_ylim(bottom=0)
    label(axis, "round", "epsilon spent")
    legend(axis, 3)
    said = f"Epsilon by round; after the last one at most {values[-1].max():.4g}"
    note = f"Composed from the steps that ran, at delta {plan.delta:g}."
    many = len(plan.clients) > FEW
    title = f"Privacy spent by {len(plan.clients)} clients" if many else "Privacy spent by client"
    return figure_of(title, [plot(figure, said)], note)


def norms(history: History, plan: PrivacyPlan) -> Figure | None:
    """Return gradient norms and clipping, where clients report them."""
    rows: list[tuple[int, list[float], float | None]] = []
    for metrics in history:
        for report in metrics.get("reports", {}).values():
            if "grad_norm_quantiles" in report:
                quantiles = report["grad_norm_quantiles"]
                rows.append((metrics["round"], quantiles, report.get("clip_fraction")))
    if not rows:
        return None
    rounds = [r for r, _, _ in rows]
    figure, (axis,) = canvas(1)
    axis.vlines(rounds, [q[0] for _, q, _ in rows], [q[2] for _, q, _ in rows], color=GREY, lw=1)
    axis.plot(rounds, [q[1] for _, q, _ in rows], ".", color=BLUE, ms=4)
    axis.set_yscale("log")
    if not plan.per_example:
        label(axis, "round", "gradient norm")
        note = "A point a client and round: median over its steps, with the 10 % to 90 % range."
        return figure_of("Gradient norms", [plot(figure, "Gradient norms by round")], note)
    axis.axhline(plan.clip_norm, color=INK, lw=1, ls="--")
    label(axis, "round", "gradient norm of an example")
    other, (right,) = canvas(1)
    right.plot(rounds, [c for _, _, c in rows], ".", color=BLUE, ms=4)
    right.set_ylim(-0.03, 1.03)
    label(right, "round", "share of examples clipped")
    note = (
        "A point a client and round: median, with the 10 % to 90 % range; the dashed line is the "
        "clip. These diagnostics are computed on private data and are not covered by the guarantee."
    )
    drawn = [
        plot(figure, "Gradient norms of examples by round, with the clip"),
        plot(other, "Share of examples whose gradient is clipped, by round"),
    ]
    return figure_of("Gradient norms and clipping", drawn, note)
