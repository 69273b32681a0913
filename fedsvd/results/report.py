"""report.html: a run on one self-contained page."""

import io
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

from fedsvd.results.recorder import write_text

if TYPE_CHECKING:
    from matplotlib.axes import Axes

    from fedsvd.experiment import Run

INK, BLUE, ORANGE, GREY = "#222222", "#1f5fa8", "#c8641b", "#9aa3ad"


def write_report(path: Path, run: "Run", summary: Mapping[str, Any]) -> None:
    """Write the page: facts, accuracy and loss, epsilon, gradient norms, singular values.

    Everything is inline, and text from configuration and data is escaped.
    """
    figures = [f for f in (_accuracy(run), _epsilon(run), _norms(run), _spectra(run)) if f]
    text = page(
        "report.html",
        summary={k: v for k, v in summary.items() if k != "singular_values"},
        plan=run.ledger.plan,
        clients=run.ledger.as_dict()["clients"],
        labels=run.worker.task.label_names,
        figures=figures,
    )
    write_text(path, text)


def page(template: str, **values: Any) -> str:
    """Return a page of templates/ with its values in place, escaped."""
    environment = Environment(
        loader=PackageLoader("fedsvd.results", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(template).render(values)


def _accuracy(run: "Run") -> dict[str, str]:
    scored = [m for m in run.history if "accuracy" in m]
    rounds = [m["round"] for m in scored]
    figure, (left, right) = canvas(2)
    left.plot(rounds, [m["accuracy"] for m in scored], color=BLUE, marker=".")
    label(left, "round", "validation accuracy")
    right.plot(rounds, [m["loss"] for m in scored], color=BLUE, marker=".", label="validation")
    trained = [(m["round"], m["train_loss"]) for m in run.history if m.get("train_loss")]
    if trained:
        right.plot(*zip(*trained, strict=True), color=ORANGE, lw=1, label="clients, mean")
    label(right, "round", "cross-entropy")
    right.legend(frameon=False)
    return {"title": "Accuracy and loss", "svg": svg(figure), "note": ""}


def _epsilon(run: "Run") -> dict[str, str] | None:
    if not run.ledger.plan.private:
        return None
    figure, (axis,) = canvas(1)
    for client in sorted(c.client for c in run.ledger.plan.clients)[:20]:
        points = [(m["round"], m["epsilon"][str(client)]) for m in run.history if "epsilon" in m]
        if points:
            axis.step(*zip(*points, strict=True), where="post", lw=1.2, label=f"client {client}")
    if run.ledger.plan.epsilon is not None:
        axis.axhline(run.ledger.plan.epsilon, color=INK, lw=1, ls="--", label="target")
    label(axis, "round", "epsilon spent")
    axis.legend(frameon=False, fontsize=8, ncols=2)
    note = f"Composed from the steps that ran, at delta {run.ledger.plan.delta:g}."
    return {"title": "Privacy spent by client", "svg": svg(figure), "note": note}


def _norms(run: "Run") -> dict[str, str] | None:
    rows: list[tuple[int, list[float], float | None]] = []
    for metrics in run.history:
        for report in metrics.get("reports", {}).values():
            if "grad_norm_quantiles" in report:
                quantiles = report["grad_norm_quantiles"]
                rows.append((metrics["round"], quantiles, report.get("clip_fraction")))
    if not rows:
        return None
    clipped = run.ledger.plan.per_example
    figure, axes = canvas(2 if clipped else 1)
    rounds = [r for r, _, _ in rows]
    axes[0].vlines(rounds, [q[0] for _, q, _ in rows], [q[2] for _, q, _ in rows], color=GREY, lw=1)
    axes[0].plot(rounds, [q[1] for _, q, _ in rows], ".", color=BLUE, ms=4)
    if clipped:
        axes[0].axhline(run.ledger.plan.clip_norm, color=INK, lw=1, ls="--")
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


def _spectra(run: "Run") -> dict[str, str] | None:
    from fedsvd.lowrank import spectra

    lines = list(spectra(run.state).values())
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


def canvas(columns: int) -> tuple[Any, list[Any]]:
    """Return a figure with so many plots side by side, and their axes."""
    # The object interface: pyplot would keep global state and may look for a display.
    from matplotlib.figure import Figure

    figure = Figure(figsize=(4.6 * columns, 3.0), layout="constrained")
    axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.6)
    return figure, list(axes)


def label(axis: "Axes", x: str, y: str) -> None:
    """Name both axes."""
    axis.set_xlabel(x)
    axis.set_ylabel(y)


def svg(figure: Any) -> str:
    """Return a figure as an SVG element."""
    buffer = io.StringIO()
    figure.savefig(buffer, format="svg", metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]
