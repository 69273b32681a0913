"""What is printed never raises, and data in it is text and nothing else."""

import ast
import errno
import io
import os
import subprocess
import sys
from pathlib import Path

import pytest
from rich.cells import cell_len

from fedsvd.terminal import (
    Output,
    columns,
    complain,
    folded,
    guarded,
    one_line,
    output,
    plain,
    say,
)
from tests.tiny import make_inputs

ODD = "плохо ☃ [neg] [/neg] \x1b[2J é"


class Broken(io.StringIO):
    """A stream whose every write and flush fails."""

    def __init__(self, error):
        super().__init__()
        self.error, self.asked = error, 0

    def write(self, text):
        self.asked += 1
        raise self.error

    def flush(self):
        raise self.error


def stream(encoding):
    return io.TextIOWrapper(io.BytesIO(), encoding=encoding, errors="strict")


@pytest.mark.parametrize("encoding", ["ascii", "latin-1", "cp1252", "koi8-r", "utf-8", "utf-16"])
def test_every_text_is_written_in_every_encoding(encoding):
    to = stream(encoding)
    Output(to).write(ODD + "\udcff\n")
    to.flush()
    told = to.buffer.getvalue().decode(encoding)
    assert "[neg] [/neg]" in told
    assert "\\udcff" in told
    for character in "плохо☃é":
        try:
            character.encode(encoding)
            assert character in told
        except UnicodeEncodeError:  # nothing is lost: the escape names it
            assert character.encode("ascii", "backslashreplace").decode() in told


@pytest.mark.parametrize(
    "error",
    [
        BrokenPipeError(errno.EPIPE, "closed"),
        OSError(errno.ENOSPC, "full"),
        OSError(errno.EIO, "hung up"),
        ValueError("I/O operation on closed file"),
    ],
    ids=str,
)
def test_a_stream_that_cannot_be_written_is_silent_from_then_on(error):
    broken = Broken(error)
    to = output(broken)
    for _ in range(3):
        assert to.write("x") == 1
        to.flush()
    assert broken.asked == 1
    assert to.closed


def test_a_reader_that_is_busy_loses_a_text_and_not_the_stream():
    broken = Broken(BlockingIOError(errno.EAGAIN, "busy"))
    to = output(broken)
    to.write("x")
    to.write("y")
    assert broken.asked == 2


def test_no_stream_at_all():
    to = output(None)
    to.write("x")
    to.flush()
    assert not to.isatty()
    assert output(to) is to


def test_what_steers_a_terminal_is_shown_as_an_escape():
    assert plain("a\x1b[31mb\nc\td\u202ee\x9b\u2028") == r"a\x1b[31mb\nc\td\u202ee\x9b\u2028"
    for text in ("плохо", "👩\u200d💻", "日本", "a b", "\xa0", "[red]x[/red]", ":smile:"):
        assert plain(text) == text
    assert one_line("a\n\n  b  c\r\nd ") == "a b  c d"


def test_columns_are_aligned_by_what_is_shown_and_nothing_is_cut():
    long = "x" * 300
    assert columns([("a", "1", long), ("日本", "22", "y")], left=(0, 2)) == [
        f"a      1  {long}", "日本  22  y",
    ]  # fmt: skip


@pytest.mark.parametrize(
    "line",
    [
        "task       rotten_tomatoes from package: movie_review: 1530 train, 125 validation, 149 test",
        "validation accuracy  0.7520 on 125 examples  (best of the rounds on the same 56: 0.7500)",
        "run folder           /" + "x" * 100 + " and 日本 " * 20,
        "a line without a gap of two blanks that goes on for rather longer than a terminal is wide",
        "x" * 120,
        "  client 1 has spent its budget, and why that is so takes up more than one line of eighty",
        "short",
    ],
)
def test_a_line_is_folded_between_words_alone(line):
    lines = folded(line, 80)
    assert " ".join(" ".join(lines).split()) == " ".join(line.split())
    assert all(cell_len(one) <= 80 or "x" * 100 in one for one in lines)
    assert len(lines) <= 1 + cell_len(line) // 59
    if line.startswith("task"):
        assert lines[1].startswith(" " * 11 + "validation, 149 test")


def test_nothing_prints_but_by_this_module():
    """Rich's consoles are given a stream of ours, and print texts that are no markup."""
    root = Path(__file__).parents[1]
    for path in sorted((root / "fedsvd").rglob("*.py")):
        calls = [n for n in ast.walk(ast.parse(path.read_text())) if isinstance(n, ast.Call)]
        named = [ast.unparse(call.func) for call in calls]
        assert "print" not in named, path
        assert not any(name.startswith(("sys.stdout.", "sys.stderr.")) for name in named), path
        for call, name in zip(calls, named, strict=True):
            if name.endswith("Console"):
                assert "self._stream" in ast.unparse(call), path
            if name.endswith("console.print"):
                assert ast.unparse(call.args[0]).startswith("Text("), path


def test_printing_within_a_command_never_raises(monkeypatch):
    broken = Broken(BrokenPipeError())
    monkeypatch.setattr(sys, "stdout", broken)
    monkeypatch.setattr(sys, "stderr", None)
    with guarded():
        print("x")  # as libraries do
        print("y", file=sys.stderr)
        say("z")
        complain("z")
    assert sys.stdout is broken
    assert sys.stderr is None


@pytest.fixture(scope="module")
def odd(tmp_path_factory):
    """A run whose labels and folder are what markup is made of."""
    folder = tmp_path_factory.mktemp("in") / "[bold] [/b] плохо  x"
    folder.mkdir(parents=True)
    given = make_inputs(folder)
    data = folder / "data.csv"
    head, *lines = data.read_text().split("\n")
    names = ["[neg]", "[/neg]", "плохо", "[link=x]y[/]"]
    lines = [line[:-1] + names[i % 4] for i, line in enumerate(lines)]
    data.write_text("\n".join([head, *lines]), encoding="utf-8")
    quoted = [f"{k}='{v}'" if str(folder) in v else g for g in given for k, v in [g.split("=", 1)]]
    declared = ",".join(f"'{name}'" for name in names)
    return folder, [*quoted, f"data.labels=[{declared}]"]


def command(module, *arguments, encoding="utf-8", redirect="", cwd):
    """Run a command in a shell, with a redirection or a pipe; `status N` is the command's own."""
    script = f'"$@" {redirect}; echo "status ${{PIPESTATUS[0]}}" >&3'
    env = {**os.environ, "PYTHONIOENCODING": encoding, "PYTHONPATH": os.getcwd()}
    reader, writer = os.pipe()
    done = subprocess.run(
        ["bash", "-c", f"exec 3>&{writer}; {script}", "bash", sys.executable, "-m", module,
         *arguments],
        capture_output=True, check=False, cwd=cwd, env=env, pass_fds=[writer],
    )  # fmt: skip
    os.close(writer)
    with open(reader) as file:
        status = int(file.read().split()[-1])
    return status, done.stdout.decode(encoding), done.stderr.decode(encoding)


CLOSED = [
    ("| head -3", "utf-8"),
    (">&- 2>&- <&-", "ascii"),
    ("> /dev/full 2> /dev/full", "cp1252"),
]


@pytest.mark.parametrize(("redirect", "encoding"), CLOSED)
def test_a_closed_pipe_or_a_full_disk_silences_the_screen_alone(redirect, encoding, odd):
    folder, given = odd
    run = folder / f"run {CLOSED.index((redirect, encoding))}"
    status, out, _ = command(
        "fedsvd.run", *given, "rounds=2", f"hydra.run.dir='{run}'",
        encoding=encoding, redirect=redirect, cwd=folder,
    )  # fmt: skip
    assert status == 0
    assert len(out.splitlines()) <= 3
    assert (run / "summary.json").exists()
    assert (run / "report.html").exists()
    lines = (run / "metrics.jsonl").read_text().splitlines()
    assert len(lines) == 3
    assert all(line.startswith("{") for line in lines)


def test_labels_and_folders_are_shown_as_they_are(odd):
    folder, given = odd
    run = folder / "run"
    status, out, err = command(
        "fedsvd.run", *given, "rounds=2", f"hydra.run.dir='{run}'", encoding="ascii", cwd=folder
    )
    assert status == 0, err
    shown = str(run).encode("ascii", "backslashreplace").decode()
    assert f"run folder           {shown}\n" in out
    assert out.startswith("loading task ")
    clients = out.split("labels\n")[1].split("\n\n")[0].splitlines()
    assert len(clients) == 6
    assert all(len(line) <= 80 for line in clients)
    assert "[/neg] " in "".join(clients)
    status, out, err = command("fedsvd.results", str(folder), encoding="latin-1", cwd=folder)
    assert status == 0
    assert str(folder).encode("latin-1", "backslashreplace").decode("latin-1") in out
    status, out, err = command("fedsvd.results", f"{folder} [/red]", encoding="ascii", cwd=folder)
    assert status == 2
    assert err == f"error: {shown[:-4]} [/red]: is not a folder\n"


def test_no_file_gets_the_number_of_a_standard_stream_that_is_closed(tmp_path):
    code = (
        "from fedsvd.terminal import guarded\nimport sys\n"
        "with guarded():\n    sys.exit(40 + open('file', 'w').fileno())"
    )
    for closed in (">&-", ">&- 2>&- <&-"):
        done = subprocess.run(
            ["bash", "-c", f'exec "$@" {closed}', "bash", sys.executable, "-c", code],
            cwd=tmp_path, env={**os.environ, "PYTHONPATH": os.getcwd()}, check=False,
        )  # fmt: skip
        assert done.returncode > 42


@pytest.mark.parametrize("redirect", ["| head -1", "> /dev/full"])
def test_what_goes_past_the_guard_cannot_raise_either(redirect, tmp_path):
    (tmp_path / "past.py").write_text(
        "from fedsvd.terminal import guarded, say\nimport os, sys\n"
        "with guarded():\n"
        "    for _ in range(20000):\n        say('x' * 50)\n"
        "    print('a library that kept the stream', file=sys.__stdout__, flush=True)\n"
        "    os.write(1, b'compiled code')\n"
    )
    assert command("past", redirect=redirect, cwd=tmp_path)[::2] == (0, "")


PRINTING = [
    ("fedsvd.privacy", "--sample-rate", "0.1", "--steps", "10", "--epsilon", "1",
     "--accountant", "rdp"),
    ("fedsvd.run", "--list"),
    ("fedsvd.run", "--help"),
]  # fmt: skip


@pytest.mark.parametrize("given", PRINTING, ids=" ".join)
def test_other_commands_into_a_pipe_that_closes(given, tmp_path):
    status, _, err = command(*given, redirect="| head -1", encoding="ascii", cwd=tmp_path)
    assert (status, err) == (0, "")


def test_an_error_is_told_in_any_encoding_and_to_nobody(tmp_path):
    given = ("fedsvd.run", "data.path='плохо'", "data=folder")
    status, _, err = command(*given, encoding="ascii", cwd=tmp_path)
    assert status == 2
    assert err.startswith("error: data.path: '\\u043f\\u043b")
    assert len(err.splitlines()) == 1
    status, out, err = command(*given, redirect="2>&-", cwd=tmp_path)
    assert (status, err) == (2, "")
    assert "error" not in out  # print(..., file=None) would put it there


LIBRARY = """
import logging.config, sys
from fedsvd.terminal import guarded
with guarded():
    import absl.logging  # its handler keeps the stream that it finds, and closes it
logging.config.dictConfig({"version": 1})  # as another Hydra app or a notebook does
print("still here", file=sys.stderr)
"""


def test_no_library_closes_the_streams_of_the_process():
    done = subprocess.run(
        [sys.executable, "-c", LIBRARY], capture_output=True, text=True, check=False
    )
    assert (done.returncode, done.stderr) == (0, "still here\n")


def test_a_stream_is_neither_closed_nor_taken_apart():
    stream = io.StringIO()
    ours = output(stream)
    ours.close()
    with pytest.raises(io.UnsupportedOperation):
        ours.detach()
    ours.write("more")
    assert stream.getvalue() == "more"
