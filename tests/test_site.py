"""What the site's hooks make of a page (scripts/site.py); CI builds the site itself."""

import importlib.util
from pathlib import Path

import pytest

pytest.importorskip("mkdocs", reason="the [docs] extra is not installed")
spec = importlib.util.spec_from_file_location(
    "site_hooks", Path(__file__).parent.parent / "scripts" / "site.py"
)
site = importlib.util.module_from_spec(spec)
spec.loader.exec_module(site)


def test_words_of_code_stay_whole_and_cells_are_marked_outside_of_blocks():
    block = "<pre><code>a --b\nc-d</code></pre>"
    text = "a long text, " * 8
    html = (
        f"<p><code>fedsvd --rounds\nx</code></p>{block}"
        f"<td>0.1 <b>± 0.2</b></td><td>{text}</td><td>a text of a middle length</td>"
    )
    assert site.on_page_content(html, None, None, None) == (
        f"<p><code>fedsvd <span>--rounds</span> x</code></p>{block}"
        f'<td class="short">0.1 <b>± 0.2</b></td><td class="long">{text}</td>'
        "<td>a text of a middle length</td>"
    )


def test_a_list_behind_a_paragraph_gets_a_blank_line():
    assert site._apart(["a", "- b", "- c", "d"]) == ["a", "", "- b", "- c", "d"]
