"""The figure of an audit: the canaries' scores, and the bounds on epsilon that follow."""

import math
from pathlib import Path
from typing import Any

import numpy as np
from scipy.stats import norm

from fedsvd.audit.audit import Audit
from fedsvd.files import write_text
from fedsvd.pages import BLUE, GREY, INK, ORANGE, canvas, label, svg


def write_figure(path: Path, found: Audit) -> None:
    """Write the figure of one audit as SVG or PNG, by the file's ending."""
    figure, (left, right) = canvas(2)
    _scores(left, found)
    _bounds(right, found)
    if path.suffix == ".png":
        figure.savefig(path, dpi=150)
        return
    write_text(path, '<?xml version="1.0" encoding="utf-8"?>\n' + svg(figure))


def _scores(axis: Any, found: Audit) -> None:
    run = found.figures.get("pipeline", {})
    finite = [s[np.isfinite(s)] for s in (found.outside, found.inside)]
    if min(len(s) for s in finite) < 2:
        axis.text(0.5, 0.5, "no canaries' scores", ha="center", transform=axis.transAxes)
        axis.set_axis_off()
        return
    both = np.concatenate(finite)
    edges = np.linspace(both.min(), both.max(), 41)
    for scores, colour, name in zip(finite, (GREY, BLUE), ("out", "in"), strict=True):
        axis.hist(scores, edges, density=True, color=colour, alpha=0.5, label=f"canaries {name}")
    x = np.linspace(edges[0], edges[-1], 300)
    axis.plot(x, norm.pdf(x), color=INK, lw=1, label="theory, out")
    axis.plot(x, norm.pdf(x, run["mu_theory"]), color=ORANGE, lw=1, ls="--",
              label=f"shifted by mu = {run['mu_theory']:.3f}")  # fmt: skip
    label(axis, "score, in planned deviations of its noise", "density")
    axis.set_title(f"mu = {run['mu']:.3f} (se {run['mu_se']:.3f})", fontsize=9)
    axis.legend(frameon=False, fontsize=7)


def _bounds(axis: Any, found: Audit) -> None:
    named: dict[str, float] = {}
    if "mechanism" in found.figures:
        named["mechanism, composed"] = found.figures["mechanism"]["bound"]
    named |= found.figures.get("pipeline", {}).get("bounds", {})
    shown = {n: v for n, v in named.items() if math.isfinite(v)}
    axis.barh(list(shown), list(shown.values()), color=BLUE, alpha=0.7, height=0.6)
    planned = found.figures["plan"]["epsilon"]
    if planned is not None and math.isfinite(planned):
        axis.axvline(planned, color=INK, lw=1, ls="--", label="the plan's epsilon")
        axis.legend(frameon=False, fontsize=7)
    axis.invert_yaxis()
    axis.tick_params(axis="y", labelsize=7)
    label(axis, "epsilon: lower bounds at 95 %", "")
