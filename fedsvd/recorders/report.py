"""report.html: a run on one self-contained page."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsvd.files import write_text
from fedsvd.pages import BLUE, GREY, INK, ORANGE, canvas, label, page, svg
from fedsvd.privacy.plan import PrivacyPlan, noise_source, warnings_of
from fedsvd.rounds.record import Start, Summary

History = Sequence[Mapping[str, Any]]


def write_report(path: Path, start: Start, summary: Summary) -> None:
    """Write the page: facts, accuracy and loss, epsilon, gradient norms, singular values.

    Everything is inline, and text from configuration and data is escaped.
    """
    history, plan = summary.history, start.plan
    spectra = summary.values["singular_values"]
    drawn = _accuracy(history), _epsilon(history, plan), _norms(history, plan), _spectra(spectra)
    text = page(
        __package__,
        "report.html",
        summary={k: v for k, v in summary.values.items() if k != "singular_values"},
        plan=plan,
        noise=noise_source(plan),
        warnings=warnings_of(plan),
        clients=summary.ledger["clients"],
        mixes=[_mix(start.task.labels, counts) for counts in start.task.clients],
        labels=start.task.labels,
        figures=[figure for figure in drawn if figure],
    )
    write_text(path, text)


def _mix(labels: Sequence[str], counts: Sequence[int]) -> str:
    """Return how many examples of each label a client holds."""
    held = [f"{name}: {n}" for name, n in zip(labels, counts, strict=True) if n]
    return ", ".join(held) or "on its own machine"


def _accuracy(history: History) -> dict[str, str]:
    scored = [m for m in history if "accuracy" in m]
    rounds = [m["round"] for m in scored]
    figure, (left, right) = canvas(2)
    left.plot(rounds, [_same_rows(m, "accuracy") for m in scored], color=BLUE, marker=".")
    label(left, "round", "validation accuracy")
    raw = [(m["round"], m["raw_accuracy"]) for m in scored if "raw_accuracy" in m]
    if raw:
        left.lines[0].set_label("average")
        left.plot(*zip(*raw, strict=True), color=GREY, lw=1, label="last model")
    values = [_same_rows(m, "loss") for m in scored]
    right.plot(rounds, values, color=BLUE, marker=".", label="validation")
    note = ""
    for last in [m for m in scored if "subset_accuracy" in m][-1:]:
        told = f"all {last['examples']}"
        for axis, key in ((left, "accuracy"), (right, "loss")):
            axis.plot([last["round"]], [last[key]], "s", color=INK, ms=5, label=told)
        note = (
            f"The lines of validation are on the same {last['subset_examples']} of its "
            f"{last['examples']} examples in every round; the square is on all of them."
        )
    if left.get_legend_handles_labels()[0]:
        left.legend(frameon=False)
    trained = [(m["round"], m["train_loss"]) for m in history if m.get("train_loss")]
    if trained:
        right.plot(*zip(*trained, strict=True), color=ORANGE, lw=1, label="clients, mean")
    label(right, "round", "cross-entropy")
    right.legend(frameon=False)
    return {"title": "Accuracy and loss", "svg": svg(figure), "note": note}


def _same_rows(metrics: Mapping[str, Any], key: str) -> float:
    """Return a round's figure on the rows that all rounds are evaluated on."""
    return float(metrics.get(f"subset_{key}", metrics[key]))


def _epsilon(history: History, plan: PrivacyPlan) -> dict[str, str] | None:
    if not plan.private:
        return None
    figure, (axis,) = canvas(1)
    for client in sorted(c.client for c in plan.clients)[:20]:
        points = [(m["round"], m["epsilon"][str(client)]) for m in history if "epsilon" in m]
        if points:
            axis.step(*zip(*points, strict=True), where="post", lw=1.2, label=f"client {client}")
    if plan.epsilon is not None:
        axis.axhline(plan.epsilon, color=INK, lw=1, ls="--", label="target")
    label(axis, "round", "epsilon spent")
    axis.legend(frameon=False, fontsize=8, ncols=2)
    note = f"Composed from the steps that ran, at delta {plan.delta:g}."
    return {"title": "Privacy spent by client", "svg": svg(figure), "note": note}


def _norms(history: History, plan: PrivacyPlan) -> dict[str, str] | None:
    rows: list[tuple[int, list[float], float | None]] = []
    for metrics in history:
        for report in metrics.get("reports", {}).values():
            if "grad_norm_quantiles" in report:
                quantiles = report["grad_norm_quantiles"]
                rows.append((metrics["round"], quantiles, report.get("clip_fraction")))
    if not rows:
        return None
    clipped = plan.per_example
    figure, axes = canvas(2 if clipped else 1)
    rounds = [r for r, _, _ in rows]
    axes[0].vlines(rounds, [q[0] for _, q, _ in rows], [q[2] for _, q, _ in rows], color=GREY, lw=1)
    axes[0].plot(rounds, [q[1] for _, q, _ in rows], ".", color=BLUE, ms=4)
    if clipped:
        axes[0].axhline(plan.clip_norm, color=INK, lw=1, ls="--")
        axes[1].plot(rounds, [c for _, _, c in rows], ".", color=BLUE, ms=4)
        axes[1].set_ylim(-0.03, 1.03)
        label(axes[1], "round", "share of examples clipped")
    axes[0].set_yscale("log")
    label(axes[0], "round", "gradient norm of an example" if clipped else "gradient norm")
    note = (
        "A point a client and round: median, with the 10 % to 90 % range; the dashed line is the "
        "clip. These diagnostics are computed on private data and are not covered by the guarantee."
        if clipped
        else "A point a client and round: median over its steps, with the 10 % to 90 % range."
    )
    return {"title": "Gradient norms and clipping", "svg": svg(figure), "note": note}


def _spectra(spectra: Mapping[str, Sequence[float]]) -> dict[str, str] | None:
    lines = list(spectra.values())
    if not any(value > 0 for values in lines for value in values):
        return None
    figure, (axis,) = canvas(1)
    for i, values in enumerate(lines):
        axis.plot(
            range(1, len(values) + 1), values, lw=1, color=BLUE if i % 2 else ORANGE, alpha=0.7
        )
    axis.set_yscale("log")
    label(axis, "index", "singular value of the update")
    return {"title": "Singular values", "svg": svg(figure), "note": "A line for every layer."}
