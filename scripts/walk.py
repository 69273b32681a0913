"""Run the commands of the walk and compare what they print with the page.

python scripts/walk.py            # status 1 if a command fails or prints other lines
python scripts/walk.py --write    # put the figures of today into docs/walk.md

A block of a page that begins with ```console holds commands, each behind "$ ", and under each what it
prints. "..." stands for any lines; at the end of a line it stands for the rest of it. Numbers and
blanks may differ. Commands run in the repository's folder; walk/ is removed before.
"""

import os
import re
import shutil
import subprocess
import sys
import time
from collections.abc import Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PAGE = ROOT / "docs" / "walk.md"
BLOCK = re.compile(r"^```console\n(.*?)^```$", re.M | re.S)
SECONDS = 600  # of one command


def commands(block: str) -> list[tuple[str, list[str]]]:
    """Return the commands of a block with the lines under each."""
    found: list[tuple[str, list[str]]] = []
    for line in block.splitlines():
        if line.startswith("$ "):
            found.append((line[2:], []))
        else:
            found[-1][1].append(line)
    return found


def shape(line: str) -> str:
    """Return a line without its figures."""
    return " ".join(re.sub(r"[0-9][0-9.,:]*", "0", line).split())


def matched(told: Sequence[str], printed: Sequence[str]) -> list[str] | str:
    """Return the told lines with the printed figures, or the told line that was not printed."""
    result: list[str] = []
    place, free = 0, False
    for line in told:
        if line == "...":
            result.append(line)
            free = True
            continue
        begin, cut, _ = line.partition(" ...")
        end, wanted = len(printed) if free else place + 1, shape(begin)
        found = next(
            (
                i for i, one in enumerate(map(shape, printed[place:end]), place)
                if (one.startswith(wanted) if cut else one == wanted)
            ), None,
        )  # fmt: skip
        if found is None:
            return line
        place, free = found + 1, False
        result.append(line if cut else printed[found])
    return result if free or place == len(printed) else f"the end, before {printed[place]!r}"


def walk(text: str) -> tuple[str, list[str]]:
    """Run all commands of a page; return the page with today's figures, and what is wrong."""
    wrong: list[str] = []

    def done(match: re.Match[str]) -> str:
        lines = []
        for command, told in commands(match[1]):
            began, cpu = time.perf_counter(), os.times()
            printed, status = run(command)
            spent = os.times()
            seconds = spent.children_user + spent.children_system
            seconds -= cpu.children_user + cpu.children_system
            print(f"{time.perf_counter() - began:6.1f} s, {seconds:5.1f} of processors  {command}")
            found = matched(told, printed)
            expected = 2 if told and told[0].startswith("error:") else 0
            if status != expected or isinstance(found, str):
                why = f"status {status}" if status != expected else f"not printed: {found}"
                wrong.append("\n".join([f"$ {command}", why, "printed:", *printed]))
            lines += [f"$ {command}", *(told if isinstance(found, str) else found)]
        return "```console\n" + "\n".join(lines) + "\n```"

    return BLOCK.sub(done, text), wrong


def run(command: str) -> tuple[list[str], int]:
    """Return the lines that a command prints, and its exit status."""
    done = subprocess.run(
        ["bash", "-c", f"set -o pipefail; {command}"], cwd=ROOT, timeout=SECONDS, text=True,
        stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        env={**os.environ, "COLUMNS": "100", "TERM": "dumb"},
    )  # fmt: skip
    return done.stdout.rstrip().splitlines(), done.returncode


def main(arguments: Sequence[str]) -> int:
    """Walk, and write the page if asked to."""
    shutil.rmtree(ROOT / "walk", ignore_errors=True)
    page, wrong = walk(PAGE.read_text(encoding="utf-8"))
    if "--write" in arguments:
        PAGE.write_text(page, encoding="utf-8")
    print("\n\n".join(wrong))
    return 1 if wrong else 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
