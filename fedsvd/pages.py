"""Self-contained pages, and the look of the figures in them."""

import html
import io
from typing import TYPE_CHECKING, Any

from jinja2 import ChoiceLoader, Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, BLUE, ORANGE, GREY = "#222222", "#1f5fa8", "#c8641b", "#9aa3ad"
GREEN, PURPLE, RED, TEAL = "#3a7d44", "#7a4fa3", "#b03a48", "#4f8a8b"
COLOURS = (BLUE, ORANGE, GREEN, PURPLE, RED, TEAL, GREY)
# On a page colours are variables of its style sheet, which has others for the dark.
VARIABLES = {
    INK: "ink", BLUE: "blue", ORANGE: "orange", GREY: "grey", GREEN: "green", PURPLE: "purple",
    RED: "red", TEAL: "teal",
}  # fmt: skip
# Text stays text: it is read aloud, searched and drawn in the reader's own font.
LOOK: Any = {
    "svg.fonttype": "none", "svg.hashsalt": "fedsvd", "font.size": 11, "text.color": INK,
    "axes.edgecolor": INK, "axes.labelcolor": INK, "xtick.color": INK, "ytick.color": INK,
    "grid.color": GREY, "font.family": "sans-serif",
}  # fmt: skip


def page(package: str, template: str, **values: Any) -> str:
    """Return a page of a package's templates/ with its values in place, escaped.

    Templates may include what is in fedsvd/templates/.
    """
    environment = Environment(
        loader=ChoiceLoader(
            [PackageLoader(package, "templates"), PackageLoader("fedsvd", "templates")]
        ),
        autoescape=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(template).render(values)


def canvas(columns: int) -> tuple[Any, list[Any]]:
    """Return a figure with so many plots side by side, and their axes."""
    # The object interface: pyplot would keep global state and may look for a display.
    from matplotlib import rc_context
    from matplotlib.figure import Figure

    with rc_context(LOOK):
        figure = Figure(figsize=(4.6 * columns, 3.0), layout="constrained")
        axes = figure.subplots(1, columns, squeeze=False)[0]
    for axis in axes:
        axis.spines[["top", "right"]].set_visible(False)
        axis.grid(alpha=0.25, lw=0.6)
    return figure, list(axes)


def label(axis: "Axes", x: str, y: str) -> None:
    """Name both axes; rounds and indices get whole numbers."""
    from matplotlib.ticker import MaxNLocator

    axis.set_xlabel(x)
    axis.set_ylabel(y)
    if x in ("round", "index"):
        axis.xaxis.set_major_locator(MaxNLocator(integer=True, min_n_ticks=1))


def legend(axis: "Axes", columns: int = 1) -> None:
    """Put the legend below the plot, where it hides nothing; none where nothing is named."""
    if axis.get_legend_handles_labels()[0]:
        axis.legend(
            frameon=False, fontsize=9, ncols=columns, loc="upper left",
            bbox_to_anchor=(-0.02, -0.24), borderaxespad=0, handlelength=1.4, columnspacing=1.2,
            labelcolor=INK,
        )  # fmt: skip


def svg(figure: Any) -> str:
    """Return a figure as an SVG element."""
    from matplotlib import rc_context

    buffer = io.StringIO()
    with rc_context(LOOK):
        figure.savefig(buffer, format="svg", metadata={"Date": None}, bbox_inches="tight")
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def plot(figure: Any, told: str) -> str:
    """Return a figure as an SVG element of a page, in its colours; `told` says what is to be seen."""
    for patch in (figure.patch, *(axis.patch for axis in figure.axes)):
        patch.set_alpha(0)
    text = svg(figure)
    for colour, name in VARIABLES.items():
        text = text.replace(colour, f"var(--{name})")
    said = html.escape(told, quote=True)
    return text.replace("<svg ", f'<svg role="img" aria-label="{said}" ', 1)
