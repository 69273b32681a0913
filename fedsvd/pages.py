"""Self-contained pages, and the look of the figures in them."""

import io
from typing import TYPE_CHECKING, Any

from jinja2 import Environment, PackageLoader, StrictUndefined

if TYPE_CHECKING:
    from matplotlib.axes import Axes

INK, BLUE, ORANGE, GREY = "#222222", "#1f5fa8", "#c8641b", "#9aa3ad"


def page(package: str, template: str, **values: Any) -> str:
    """Return a page of a package's templates/ with its values in place, escaped."""
    environment = Environment(
        loader=PackageLoader(package, "templates"),
        autoescape=True,
        undefined=StrictUndefined,
    )
    return environment.get_template(template).render(values)


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
