"""The house stays as it is drawn: no circle among imports, none that points up."""

import re
import subprocess
import sys
from pathlib import Path

import pytest

from tests.layout import ORDER, circles, imports, modules, room, upward

ROOT = Path(__file__).parent.parent
MOST_LINES = 400


def test_no_circle_among_imports():
    assert circles(imports(ROOT)) == []


def test_no_import_points_up():
    assert upward(imports(ROOT)) == []


def test_every_room_of_the_order_is_there_and_every_module_has_one():
    known = modules(ROOT)
    assert [name for name in ORDER if name not in known] == []
    assert {room(name) for name in known} == set(ORDER)


def test_no_file_is_too_long():
    long = {n: len(p.read_text().splitlines()) for n, p in modules(ROOT).items()}
    assert {n: count for n, count in long.items() if count > MOST_LINES} == {}


PLANTED = {
    "at the top of the file": "from fedsvd.run import main\n",
    "of a module": "import fedsvd.run\n",
    "of a module from the package": "from fedsvd import run\n",
    "relative": "from . import run\n",
    "relative, of a name": "from .run import main\n",
    "for types": "import typing\nif typing.TYPE_CHECKING:\n    from fedsvd.run import main\n",
    "inside a function": "def f():\n    from fedsvd.run import main\n",
    "by name": "import importlib\nimportlib.import_module('fedsvd.run')\n",
    "try": "try:\n    import fedsvd.run as r\nexcept ImportError:\n    pass\n",
}


@pytest.mark.parametrize("text", PLANTED.values(), ids=PLANTED)
def test_a_planted_import_is_seen(text, tmp_path):
    package = tmp_path / "fedsvd"
    package.mkdir()
    (package / "__init__.py").write_text("")
    (package / "errors.py").write_text(text)
    (package / "run.py").write_text("from fedsvd.errors import InputError\n")
    graph = imports(tmp_path)
    assert upward(graph) == ["fedsvd.errors imports fedsvd.run"]
    assert circles(graph) == [["fedsvd.errors", "fedsvd.run"]]


def test_a_longer_circle_is_seen(tmp_path):
    package = tmp_path / "fedsvd" / "rounds"
    package.mkdir(parents=True)
    for name, text in {
        "__init__": "", "a": "from fedsvd.rounds import b", "b": "from . import c",
        "c": "def f():\n    from fedsvd.rounds.a import x", "d": "from fedsvd.rounds import a",
    }.items():  # fmt: skip
        (package / f"{name}.py").write_text(text)
    assert circles(imports(tmp_path)) == [[f"fedsvd.rounds.{x}" for x in "abc"]]


def test_recorders_never_see_a_run_a_worker_or_a_grid():
    graph = imports(ROOT)
    seen, left = set(), [n for n in graph if n.startswith("fedsvd.recorders")]
    while left:
        name = left.pop()
        if name not in seen:
            seen.add(name)
            left += graph[name]
    reached = {"fedsvd.rounds.run", "fedsvd.client.worker", "fedsvd.engines.base"} & seen
    assert reached == set()


def test_the_page_of_the_architecture_is_up_to_date():
    script = [sys.executable, str(ROOT / "scripts" / "architecture.py"), "--check"]
    done = subprocess.run(script, cwd=ROOT, capture_output=True, text=True)
    assert done.returncode == 0, done.stdout + done.stderr


def test_every_file_that_the_page_names_is_there():
    page = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
    named = set(re.findall(r"`((?:fedsvd|tests|configs|scripts)/[\w/.]+)`", page))
    assert len(named) > 10
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []
