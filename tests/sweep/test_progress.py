"""How a sweep is shown: any text of it, in any encoding, whole."""

import io
from pathlib import Path

import pytest

from fedsvd.sweep.progress import Progress, Trial
from fedsvd.sweep.trial import Outcome
from tests.conftest import compose_settings
from tests.ptys import Terminal

NAMES = ("data.path='[/b] плохо'", "model.name=" + "x" * 150, "+experiment=[red] a\x1b[2Jb")


def trials():
    settings = compose_settings("rounds=2")
    return [Trial(k, Path("x"), {}, [], settings, name) for k, name in enumerate(NAMES)]


def shown(stream):
    told = trials()
    with Progress(told, stream) as progress:
        told[0].attempts = 2
        told[0].ended(Outcome({"rounds_completed": 2, "accuracy": 0.75, "epsilon_max": 0.5}))
        told[1].ended(Outcome(reason="[/x]"))
        progress.update()


def check(told, encoding):
    for name in NAMES:
        line = name.replace("\x1b", "\\x1b").encode(encoding, "backslashreplace").decode(encoding)
        assert f"  {line}\n" in told
    assert "    0  done (2)    2/2    0.7500    0.500  data.path=" in told
    assert "    1  failed        -         -        -  model.name=" in told


@pytest.mark.parametrize("encoding", ["ascii", "cp1252", "utf-8"])
def test_lines_for_every_change_and_a_table_at_the_end(encoding):
    to = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    shown(to)
    told = to.buffer.getvalue().decode(encoding)
    check(told, encoding)
    assert "trial 0 done (2) 2/2 0.7500 0.500 data.path=" in told
    assert "trial 1 failed - - - model.name=" in told


@pytest.mark.parametrize("columns", [80, 20])
def test_a_live_table_on_a_terminal(columns, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    terminal = Terminal(columns, "ascii")
    shown(terminal.stream)
    check(terminal.text().replace("\r\n", "\n"), "ascii")


def test_a_reader_that_goes_away():
    class Gone(io.StringIO):
        def write(self, text):
            raise BrokenPipeError

    shown(Gone())
