"""The examples are short, sound, and run by their import paths from where a user stands."""

import importlib
import json
import os
import subprocess
import sys
from pathlib import Path

from fedsvd.testing import check_adapter, check_strategy
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples"


def test_it_is_sound_and_short(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    check_strategy(importlib.import_module("my_strategy").Median)
    lines = (FOLDER / "my_strategy.py").read_text().strip().splitlines()
    assert len(lines) <= 15


def test_an_initialiser_is_ten_lines(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    check_adapter(importlib.import_module("my_initialiser").Rows)
    lines = (FOLDER / "my_initialiser.py").read_text().strip().splitlines()
    assert len(lines) <= 10


def test_it_runs_from_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fedsvd.run", "strategy._target_=my_strategy.Median",
         "adapter._target_=my_initialiser.Rows", "rounds=1",
         f"hydra.run.dir={tmp_path / 'run'}", *(s for s in TINY if "rounds" not in s)],
        capture_output=True, text=True, check=False, cwd=FOLDER,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    assert summary["adapter"] == "my_initialiser.Rows"
