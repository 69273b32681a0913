"""The screen: what is shown at 80 columns, on terminals of any encoding, and after they are gone."""

import io
import os
import re

import pytest
from rich.cells import cell_len

from fedsvd.recorders import ModelRecord, RoundRecord, Start, TaskRecord
from fedsvd.recorders.lines import mix, round_line
from fedsvd.recorders.report import write_report
from fedsvd.recorders.screen import Screen
from tests.ptys import Terminal
from tests.recorders.test_recorder import LEDGER, play, rounds, start, summary

MANY = tuple(f"intent number {k} of the corpus" for k in range(77))
LABELS = [
    ("[neg]", "[/neg]"),
    ("плохо", "хорошо"),
    ("日本", "中国"),
    ("a\nb", "\x1b[31m\x1b[2J"),
    (":smile:", "[link=file:///etc]x[/link]"),
    ("\ud800", "\udcff"),
    ("negative", "positive"),
    ("x" * 200, "y" * 200),
    MANY,
]


def started(labels, *overrides, folder="films [/b]"):
    first = start(*overrides)
    counts = tuple(range(1, len(labels) + 1))
    clients = (counts, (0,) * len(labels))
    task = TaskRecord(folder, "a [red]test", labels, 100, 20, 10, 1, clients)
    return Start(first.settings, first.plan, 2, task, ModelRecord("[b]", 1000, 10, "cpu", "fp32"),
                 LEDGER)  # fmt: skip


def whole(screen, labels):
    screen.start(started(labels))
    for record in rounds():
        screen.round(record)
    failed = {**rounds()[1].metrics, "failed": {"1": "ValueError: [/x] \x1b[0m плохо"}}
    screen.round(RoundRecord(2, 2, failed, LEDGER))
    screen.finish(summary())


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "utf-8"])
@pytest.mark.parametrize("labels", LABELS, ids=lambda v: ascii(v)[:20])
def test_a_client_takes_one_line_of_80_columns(labels, encoding, tmp_path):
    to = io.TextIOWrapper(io.BytesIO(), encoding=encoding)
    folder = tmp_path / "[bold]" / "плохо  and so on" / ("x" * 150)
    whole(Screen(folder, to), labels)
    told = to.buffer.getvalue().decode(encoding)
    assert "\x1b" not in told
    assert "films [/b] from a [red]test: 100 train" in told
    assert "client 1 ValueError: [/x] \\x1b[0m" in told
    shown = str(folder).encode(encoding, "backslashreplace").decode(encoding)
    assert f"run folder           {shown}\n" in told
    lines = told.split("labels\n")[1].split("\n\n")[0].splitlines()
    assert len(lines) == 2
    assert all(cell_len(line) <= 80 for line in lines), lines
    assert "on its own machine" in lines[1]


def test_labels_that_find_no_room_are_left_out_rarest_first():
    names = ["one", "two", "three"]
    assert mix(names, [1, 2, 1], 40) == "one 25%  two 50%  three 25%"
    assert mix(names, [1, 2, 5], 21) == "three 62%  ..."
    assert mix(names, [1, 2, 5], 23) == "three 62%  two 25%  ..."
    assert mix(names, [0, 2, 5], 10) == "2 labels, most 71%"
    assert mix(names, [0, 0, 0], 10) == "on its own machine"


def test_the_report_holds_all_labels_of_a_client(tmp_path):
    write_report(tmp_path / "report.html", started(MANY, "privacy=none"), summary())
    page = (tmp_path / "report.html").read_text()
    assert all(f"{name}: {k + 1}" in page for k, name in enumerate(MANY))
    assert "on its own machine" in page


@pytest.mark.parametrize(
    ("columns", "encoding"), [(80, "ascii"), (80, "utf-8"), (20, "latin-1"), (0, "ascii")]
)
def test_a_terminal_with_a_live_bar(columns, encoding, tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    for name in ("COLUMNS", "LINES"):
        monkeypatch.delenv(name, raising=False)
    terminal = Terminal(columns, encoding)
    folder = tmp_path / "[/neg] плохо" / ("x" * 100)
    screen = Screen(folder, terminal.stream)
    whole(screen, ("[neg]", "плохо"))
    told = terminal.text().replace("\r\n", "\n")
    shown = str(folder).encode(encoding, "backslashreplace").decode(encoding)
    assert shown.split()[-1] + "\n" in told  # a word is whole, however long
    words = " ".join(told.split())
    assert f"run folder {shown}" in words
    assert "round 2/2 loss 0.6000 accuracy 0.7500 epsilon 0.500 clients 1" in words
    assert "client 1 ValueError: [/x] \\x1b[0m" in words
    assert re.search(r"round +2/2 +[-━]+", told)  # the bar
    if columns == 80:
        clients = told.split("labels\n")[1].split("\n\n")[0].splitlines()
        assert len(clients) == 2
        wide = [line for line in told.split("\n") if cell_len(line.split("\r")[-1]) > 80]
        assert 1 <= len(wide) <= 2
        assert all(line.split()[-1] in shown.split() for line in wide), wide


def test_the_line_of_a_round_stays_short_with_many_clients():
    told = {"round": 1, "train_loss": 0.5, "task": "classification", "clients": list(range(300))}
    assert round_line(told).endswith("  300 clients")
    assert round_line({**told, "clients": [4, 5]}).endswith("  clients 4,5")


def test_a_terminal_that_hangs_up_silences_the_screen_alone(tmp_path, monkeypatch):
    monkeypatch.setenv("TERM", "xterm")
    master, slave = os.openpty()
    stream = open(slave, "w")  # noqa: SIM115 -- closed below
    screen = Screen(tmp_path, stream)
    screen.start(started(("a", "b")))
    os.close(master)
    for record in rounds():
        screen.round(record)
    screen.finish(summary())
    with pytest.raises(OSError, match="Input/output"):
        stream.close()


def test_a_stream_that_is_none(tmp_path, monkeypatch):
    monkeypatch.setattr("sys.stdout", None)
    play(Screen(tmp_path))
