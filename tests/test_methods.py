"""The table of methods: no name without a row, and no evidence that is not there."""

import re
from pathlib import Path

import pytest

from fedsvd.settings.model import HEADS

ROOT = Path(__file__).resolve().parents[1]
PAGE = (ROOT / "docs/methods.md").read_text(encoding="utf-8")
EVIDENCE = "\n".join(path.read_text(encoding="utf-8") for path in (ROOT / "tests").rglob("*.py"))


def rows(title: str) -> dict[str, list[str]]:
    """Return the cells of the table under a title, by the first of them."""
    part = PAGE.split(f"\n## {title}\n")[1].split("\n## ")[0]
    lines = [line for line in part.splitlines() if line.startswith("| ")][1:]
    cells = [[cell.strip() for cell in line.strip("| ").split(" | ")] for line in lines]
    assert all(len(row) == 5 for row in cells), [row[0] for row in cells if len(row) != 5]
    assert len({row[0] for row in cells}) == len(cells)
    return {row[0]: row[1:] for row in cells}


@pytest.mark.parametrize(("title", "group"), [("Strategies", "strategy"), ("Adapters", "adapter")])
def test_every_configured_method_has_a_row(title: str, group: str) -> None:
    assert set(rows(title)) == {path.stem for path in (ROOT / "configs" / group).glob("*.yaml")}


def test_every_head_has_a_row() -> None:
    assert set(rows("Heads")) == set(HEADS)


@pytest.mark.parametrize("title", ["Strategies", "Adapters", "Heads"])
def test_the_evidence_is_there(title: str) -> None:
    for name, cells in rows(title).items():
        for told in cells[-1].split(", "):
            if told.startswith("tests/"):
                assert (ROOT / told).is_file(), (name, told)
            else:
                assert re.search(rf"^def {told}\(", EVIDENCE, re.MULTILINE), (name, told)
