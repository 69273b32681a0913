"""What the pages point to is there: links, files and commands."""

import importlib.util
import re
from pathlib import Path

import pytest
from omegaconf import OmegaConf

from fedsvd.composing import compose

ROOT = Path(__file__).parent.parent
PAGES = [
    ROOT / "README.md", ROOT / "experiments" / "README.md", ROOT / "benchmarks" / "README.md",
    *sorted((ROOT / "docs").rglob("*.md")),
]  # fmt: skip
LINK = re.compile(r"\]\(([^)#\s]+)(?:#[^)]*)?\)")
FILE = re.compile(
    r"`((?:fedsvd|tests|configs|scripts|benchmarks|examples|experiments)/[\w/.]+\.\w+)`"
)
IN_PACKAGE = re.compile(
    r"`((?:adapters|audit|checkpoints|client|data|engines|exports|models|node|privacy|recorders|rounds"
    r"|strategies)/\w+\.py)`"
)
MODULE = re.compile(r"python -m ((?:fedsvd|benchmarks|experiments)[\w.]*)")


def missing(page: Path) -> list[str]:
    text = page.read_text(encoding="utf-8")
    links = [m[1] for m in LINK.finditer(text) if not m[1].startswith("http")]
    found = [link for link in links if not (page.parent / link).exists()]
    named = [m[1] for m in FILE.finditer(text) if "NAME" not in m[1]]
    found += [name for name in named if not (ROOT / name).exists()]
    found += [m[1] for m in IN_PACKAGE.finditer(text) if not (ROOT / "fedsvd" / m[1]).exists()]
    for m in MODULE.finditer(text):
        path = ROOT / m[1].rstrip(".").replace(".", "/")
        if not (path.with_suffix(".py").exists() or (path / "__main__.py").exists()):
            found.append(m[0])
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_what_a_page_points_to_is_there(page):
    assert missing(page) == []


def swallowed(text: str) -> list[str]:
    """Return the blocks of code that a list takes for a paragraph of its last point."""
    found, within, lines = [], False, text.splitlines()
    for before, line in zip(["", *lines], lines, strict=False):
        if line.startswith("- "):
            within = True
        elif within and not before and line.startswith("    "):
            found.append(line)
        elif line and not line.startswith(" "):
            within = False
    return found


@pytest.mark.parametrize("page", PAGES, ids=lambda p: str(p.relative_to(ROOT)))
def test_no_list_swallows_a_command(page):
    assert swallowed(page.read_text(encoding="utf-8")) == []


def test_what_a_list_swallows_is_seen():
    assert swallowed("- a\n  b\n\n    python x\n") == ["    python x"]
    assert swallowed("- a\n\nThe command:\n\n    python x\n") == []


def test_every_key_of_a_run_is_in_the_reference():
    page = (ROOT / "docs" / "reference" / "keys.md").read_text(encoding="utf-8")
    config = OmegaConf.to_container(compose([]), resolve=True)
    names = [
        f"{group}.{key}" if isinstance(values, dict) else group
        for group, values in config.items()
        for key in (values if isinstance(values, dict) else ("",))
    ]
    assert len(names) > 90
    assert [name for name in names if f"| `{name}` |" not in page] == []


def test_the_walk_compares_lines_but_not_their_figures():
    spec = importlib.util.spec_from_file_location("walk", ROOT / "scripts" / "walk.py")
    walk = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(walk)
    printed = ["loading", "round 0/2  loss 0.70", "round 1/2  loss 0.61", "done in 0:12"]
    assert walk.matched(["...", "round 1/2 loss 0.5", "..."], printed) == ["...", printed[1], "..."]
    assert walk.matched(["loading", "round 1/9 ...", "..."], printed)[1] == "round 1/9 ..."
    assert walk.matched(["...", "round 1/2 acc 0.5", "..."], printed) == "round 1/2 acc 0.5"
    assert walk.matched(["round 0/2 loss 1", "..."], printed) == "round 0/2 loss 1"  # not the first
    assert walk.matched(["loading"], printed).startswith("the end")
    page = (ROOT / "docs" / "walk.md").read_text(encoding="utf-8")
    told = [one for block in walk.BLOCK.findall(page) for one in walk.commands(block)]
    assert len(told) > 10


def test_what_is_not_there_is_seen(tmp_path):
    page = tmp_path / "page.md"
    page.write_text(
        "[a](no.md) `tests/no.py` `client/no.py` python -m fedsvd.no\n"
        "[b](page.md) `tests/test_docs.py` `client/worker.py` python -m fedsvd.run x\n"
    )
    assert missing(page) == ["no.md", "tests/no.py", "client/no.py", "python -m fedsvd.no"]
