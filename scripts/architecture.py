"""Draw docs/architecture.svg from the packages' docstrings and the order in tests/layout.py.

python scripts/architecture.py           # writes the figure
python scripts/architecture.py --check   # status 1 if the figure is not up to date
"""

import ast
import sys
import textwrap
from html import escape
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
sys.path.insert(0, str(ROOT))

from tests.layout import ORDER, modules  # noqa: E402

FIGURE = ROOT / "docs" / "architecture.svg"
# Title of each band, and the room that it begins with.
BANDS = {
    "Commands and apps": "fedsvd",
    "A run": "fedsvd.experiment",
    "A round": "fedsvd.rounds",
    "A client": "fedsvd.client",
    "Settings and algebra": "fedsvd.factors",
    "Used everywhere": "fedsvd.records",
}
COLUMNS, WIDTH, HEIGHT, GAP, LEFT, TITLE = 6, 196, 88, 10, 60, 28


def bands() -> dict[str, list[str]]:
    """Return the rooms of each band, in the order of the house."""
    starts = [ORDER.index(first) for first in BANDS.values()]
    ends = [*starts[1:], len(ORDER)]
    return {title: list(ORDER[a:b]) for title, a, b in zip(BANDS, starts, ends, strict=True)}


def sentence(room: str) -> str:
    """Return the first sentence of a room's docstring."""
    text = ast.get_docstring(ast.parse(modules(ROOT)[room].read_text(encoding="utf-8"))) or ""
    return " ".join(text.split("\n\n")[0].split()).partition(". ")[0].rstrip(".").replace("`", "")


def box(room: str, x: int, y: int) -> str:
    """Return a room as a box with its name and what it is."""
    name = room.removeprefix("fedsvd.") if room != "fedsvd" else "__init__"
    lines = textwrap.wrap(sentence(room), 29, max_lines=4, placeholder=" ...")
    text = "".join(
        f'<text x="{x + 10}" y="{y + 36 + 14 * i}" class="small">{escape(line)}</text>'
        for i, line in enumerate(lines)
    )
    return (
        f'<rect x="{x}" y="{y}" width="{WIDTH}" height="{HEIGHT}" rx="6" class="box"/>'
        f'<text x="{x + 10}" y="{y + 20}" class="name">{escape(name)}</text>{text}'
    )


def figure() -> str:
    """Return the figure as SVG; imports point down."""
    parts, y = [], 16
    width = LEFT + COLUMNS * (WIDTH + GAP) + GAP
    for title, rooms in bands().items():
        rows = -(-len(rooms) // COLUMNS)
        height = TITLE + rows * (HEIGHT + GAP)
        parts.append(
            f'<rect x="{LEFT - 10}" y="{y}" width="{width - LEFT}" height="{height}" rx="8" '
            f'class="band"/>'
        )
        parts.append(f'<text x="{LEFT}" y="{y + 19}" class="title">{escape(title)}</text>')
        for i, room in enumerate(rooms):
            column, row = i % COLUMNS, i // COLUMNS
            x = LEFT + column * (WIDTH + GAP)
            parts.append(box(room, x, y + TITLE + row * (HEIGHT + GAP)))
        y += height + 10
    arrow = f'<path d="M 32 24 V {y - 24}" class="arrow" marker-end="url(#tip)"/>'
    label = f'<text x="22" y="{y // 2}" class="small" transform="rotate(-90 22 {y // 2})">imports point down</text>'  # noqa: E501
    style = (
        "<style>text{font-family:system-ui,sans-serif;fill:#1c2733}.name{font-weight:600;"
        "font-size:14px}.small{font-size:11.5px;fill:#44515e}.title{font-size:12.5px;"
        "font-weight:600;fill:#1f5fa8}.band{fill:#eef2f6}.box{fill:#fff;stroke:#b8c4d0}"
        ".arrow{stroke:#9aa3ad;stroke-width:2;fill:none}</style>"
    )
    tip = (
        '<defs><marker id="tip" viewBox="0 0 10 10" refX="5" refY="5" markerWidth="7" '
        'markerHeight="7" orient="auto"><path d="M0 0 10 5 0 10z" fill="#9aa3ad"/></marker></defs>'
    )
    background = f'<rect width="{width}" height="{y + 6}" fill="#fff"/>'
    return (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {width} {y + 6}" role="img" '
        f'aria-label="The packages of fedsvd from top to bottom">{style}{tip}{background}\n'
        + "\n".join([*parts, arrow, label])
        + "\n</svg>\n"
    )


if __name__ == "__main__":
    if "--check" in sys.argv:
        if not FIGURE.exists() or FIGURE.read_text(encoding="utf-8") != figure():
            sys.exit("docs/architecture.svg is not up to date: run python scripts/architecture.py")
    else:
        FIGURE.write_text(figure(), encoding="utf-8")
        print(FIGURE.relative_to(ROOT))
