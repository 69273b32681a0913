"""The example strategy is short, sound, and runs by its import path from where a user stands."""

import importlib
import os
import subprocess
import sys
from pathlib import Path

from fedsvd.testing import check_strategy
from tests.conftest import TINY

ROOT = Path(__file__).resolve().parent.parent
FOLDER = ROOT / "examples"


def test_it_is_sound_and_short(monkeypatch):
    monkeypatch.syspath_prepend(str(FOLDER))
    check_strategy(importlib.import_module("my_strategy").Median)
    lines = (FOLDER / "my_strategy.py").read_text().strip().splitlines()
    assert len(lines) <= 15


def test_it_runs_from_the_command_line(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fedsvd.run", "strategy._target_=my_strategy.Median",
         "rounds=1", f"hydra.run.dir={tmp_path / 'run'}", *(s for s in TINY if "rounds" not in s)],
        capture_output=True, text=True, check=False, cwd=FOLDER,
        env={**os.environ, "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert (tmp_path / "run" / "summary.json").is_file()
