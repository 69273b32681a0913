"""Run docs/tutorial/hospitals.ipynb in an empty folder and render it with what it prints.

python scripts/tutorial.py             # runs, and writes the page and its figures beside it
python scripts/tutorial.py --check     # runs, writes nothing; status 1 if a cell fails
python scripts/tutorial.py --compare   # runs nothing; status 1 if the page is another notebook's

The notebook is kept without outputs. Its page hospitals.md is Markdown: texts, code, printed lines,
tables as text, figures as files. Warnings (standard error) stay out, and so does every path of this
machine.
"""

import argparse
import os
import sys
import tempfile
import time
from pathlib import Path
from typing import Any

import nbformat
from nbformat import NotebookNode

ROOT = Path(__file__).resolve().parent.parent
NOTEBOOK = ROOT / "docs" / "tutorial" / "hospitals.ipynb"
PAGE = NOTEBOOK.with_suffix(".md")
LIMIT = 240  # seconds on two idle cores, all in all
WIDE = "import pandas; pandas.set_option('display.width', 160)"  # the page scrolls: no table is cut


def execute(notebook: NotebookNode) -> None:
    """Run the cells in an empty folder, with this tree's package; raises at the first that fails.

    The folder's own path is taken out of what they print: paths are then those within it.
    """
    from nbclient import NotebookClient

    paths = [str(ROOT), *filter(None, [os.environ.get("PYTHONPATH")])]
    os.environ["PYTHONPATH"] = os.pathsep.join(paths)
    with tempfile.TemporaryDirectory() as folder:
        notebook.cells.insert(0, nbformat.v4.new_code_cell(WIDE))
        client = NotebookClient(
            notebook, timeout=3600, kernel_name="python3", resources={"metadata": {"path": folder}}
        )
        client.execute()
        del notebook.cells[0]
    for cell in notebook.cells:
        for output in cell.get("outputs", []):
            if "text" in output:
                output.text = output.text.replace(f"{folder}/", "")
            for kind, shown in output.get("data", {}).items():
                output.data[kind] = shown.replace(f"{folder}/", "")


def page(notebook: NotebookNode, figures: dict[str, bytes]) -> str:
    """Return the notebook as Markdown; figures go into `figures` by file name."""
    note = "<!-- Made by python scripts/tutorial.py from hospitals.ipynb; edit that. -->"
    parts = [note]
    for number, cell in enumerate(notebook.cells):
        if cell.cell_type == "markdown":
            parts.append(cell.source)
        elif cell.cell_type == "code":
            parts.append(f"```python\n{cell.source}\n```")
            parts += _outputs(cell, number, figures)
    return "\n\n".join(parts) + "\n"


def _outputs(cell: NotebookNode, number: int, figures: dict[str, bytes]) -> list[str]:
    """Return what a cell printed and showed."""
    parts: list[str] = []
    streamed = "".join(o.text for o in cell.outputs if o.get("name") == "stdout")
    if streamed.strip():
        parts.append(_block(streamed))
    for output in cell.outputs:
        data: Any = output.get("data", {})
        if "image/svg+xml" in data:
            name = f"{NOTEBOOK.stem}-{number}.svg"
            figures[name] = data["image/svg+xml"].encode()
            parts.append(f"![{cell.metadata.get('alt', '')}]({name})")
        elif "text/plain" in data:
            parts.append(_block(data["text/plain"]))
    return parts


def _block(text: str) -> str:
    lines = [line.rstrip() for line in text.strip("\n").split("\n")]
    return "\n".join(["```text", *lines, "```"])


def sources(text: str) -> list[str]:
    """Return what of a page is the notebook's own: everything but printed blocks and figures."""
    kept, printed = [], False
    for line in text.splitlines():
        if line == "```text":
            printed = True
        elif printed:
            printed = line != "```"
        elif line and not line.startswith("!["):
            kept.append(line)
    return kept


def leaks(text: str) -> list[str]:
    """Return the lines that hold a path of this machine."""
    places = {str(ROOT), str(Path.home()), tempfile.gettempdir(), sys.prefix, os.getcwd()} - {"/"}
    return [line for line in text.splitlines() if any(place in line for place in places)]


def main() -> int:
    """Do what the command line says; return the exit status."""
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--check", action="store_true", help="run, write nothing")
    parser.add_argument("--compare", action="store_true", help="compare page and notebook")
    given = parser.parse_args()
    notebook = nbformat.read(NOTEBOOK, as_version=4)
    if given.compare:
        same = PAGE.exists() and sources(PAGE.read_text("utf-8")) == sources(page(notebook, {}))
        if not same:
            print("docs/tutorial/hospitals.md is not up to date: run python scripts/tutorial.py")
        return 0 if same else 1
    began = time.perf_counter()
    execute(notebook)
    seconds = time.perf_counter() - began
    figures: dict[str, bytes] = {}
    text = page(notebook, figures)
    for line in leaks(text):
        print(f"a path of this machine: {line}")
    if not leaks(text) and not given.check:
        for old in PAGE.parent.glob(f"{NOTEBOOK.stem}-*.svg"):
            old.unlink()
        for name, data in figures.items():
            (PAGE.parent / name).write_bytes(data)
        PAGE.write_text(text, encoding="utf-8")
    slow = " (above the limit)" if seconds > LIMIT else ""
    print(f"the tutorial ran in {seconds:.0f} s{slow}")
    return 1 if leaks(text) else 0


if __name__ == "__main__":
    sys.exit(main())
