"""The tutorial's page is what its notebook printed; CI runs the notebook (scripts/tutorial.py)."""

import importlib.util
from pathlib import Path

import pytest

nbformat = pytest.importorskip("nbformat", reason="the [notebook] extra is not installed")
ROOT = Path(__file__).parent.parent
spec = importlib.util.spec_from_file_location("tutorial", ROOT / "scripts" / "tutorial.py")
tutorial = importlib.util.module_from_spec(spec)
spec.loader.exec_module(tutorial)


@pytest.fixture
def notebook():
    return nbformat.read(tutorial.NOTEBOOK, as_version=4)


def test_the_notebook_is_kept_without_outputs(notebook):
    code = [cell for cell in notebook.cells if cell.cell_type == "code"]
    assert len(code) > 5
    assert all(cell.outputs == [] and cell.execution_count is None for cell in code)


def test_the_page_is_that_of_the_notebook(notebook):
    page = tutorial.PAGE.read_text(encoding="utf-8")
    assert tutorial.sources(page) == tutorial.sources(tutorial.page(notebook, {}))
    assert page.count("```text") > 5
    notebook.cells[3].source += "\n# planted"
    assert tutorial.sources(page) != tutorial.sources(tutorial.page(notebook, {}))


def test_a_page_has_what_cells_print_and_no_path_of_this_machine(notebook):
    cell = notebook.cells[2]
    svg = {"image/svg+xml": "<svg/>", "text/plain": "<Figure>"}
    cell.metadata["alt"] = "a curve"
    cell.outputs = [
        nbformat.v4.new_output("stream", name="stdout", text="first \n"),
        nbformat.v4.new_output("stream", name="stderr", text="a warning\n"),
        nbformat.v4.new_output("display_data", data=svg),
        nbformat.v4.new_output("execute_result", data={"text/plain": str(ROOT / "x")}),
    ]
    figures = {}
    page = tutorial.page(notebook, figures)
    assert "```text\nfirst\n```\n\n![a curve](hospitals-2.svg)\n\n```text\n" in page
    assert "a warning" not in page
    assert figures == {"hospitals-2.svg": b"<svg/>"}
    assert tutorial.leaks(page) == [str(ROOT / "x")]
    assert tutorial.leaks(tutorial.PAGE.read_text(encoding="utf-8")) == []
