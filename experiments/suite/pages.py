"""python -m experiments.suite.pages [--check] [PAGE ...]: the tables of docs/ from the records.

A page of docs/ shows a command of `python -m experiments.suite` (table, gains, rates, or room with
--table) or `python -m experiments.table show` as a block of its own, and what it prints below. This
writes below each such command what it prints now. With --check it writes nothing, and ends with
status 1 if a page is not up to date. A command with "..." or a word in capital letters is not
complete, and is left alone.

An interval in the text ("1.5 ± 1.1") must be in a table that a command of docs/ prints, whatever
its sign. One that is not ends in status 1 too.
"""

import argparse
import contextlib
import io
import re
import shlex
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

from experiments.suite.__main__ import PRINTED
from experiments.suite.__main__ import main as suite
from experiments.suite.room import main as room
from experiments.table import main as single

ROOT = Path(__file__).parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))
INTERVAL = re.compile(r"(\d+\.\d+) ± (\d+\.\d+)")
HEADING = re.compile(r"\*\*[^*]+\*\*$")  # what some commands print above each of their tables
COMMANDS: dict[str, Callable[[list[str]], int]] = {
    "experiments.suite": suite,
    "experiments.suite.room": room,
    "experiments.table": single,
}


def filled(page: str) -> tuple[str, list[str]]:
    """Return the page with the tables as the commands print them, and these tables."""
    lines, made, found = page.splitlines(), [], []
    at = 0
    while at < len(lines):
        end = at
        while end < len(lines) and lines[end].startswith("    "):
            end += 1
        last = below(lines, end + 1)
        printed = "\n".join(outputs(lines[at:end])) if last > end + 1 else ""
        if printed:
            made += [*lines[at:end], "", *printed.splitlines()]
            found.append(printed)
            at = last
        else:
            made += lines[at : max(end, at + 1)]
            at = max(end, at + 1)
    return ("\n".join(made) + "\n", found) if found else (page, [])


def below(lines: Sequence[str], start: int) -> int:
    """Return where the tables that begin at a line end, with their headings and what parts them."""
    end = start
    for at in range(start, len(lines)):
        if lines[at].startswith("|"):
            end = at + 1
        elif lines[at] and not HEADING.match(lines[at]):
            break
    return end


def outputs(block: Sequence[str]) -> Iterator[str]:
    """Yield what each complete command of a block prints."""
    for command in re.sub(r"\\\n\s*", "", "\n".join(block)).splitlines():
        if not command.strip().startswith("python -m experiments."):
            continue
        module, *words = shlex.split(command)[2:]
        if not prints(module, words):
            continue
        said = io.StringIO()
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(said):
            if COMMANDS[module](words):
                raise SystemExit(f"failed: {command}")
        yield said.getvalue().lstrip("\n")


def prints(module: str, words: Sequence[str]) -> bool:
    """Return whether this is a complete command that prints tables."""
    if not words or any(word == "..." or re.fullmatch("[A-Z]+", word) for word in words):
        return False
    if module == "experiments.suite.room":
        return "--table" in words
    kinds = {"experiments.suite": PRINTED, "experiments.table": ("show",)}
    return words[0] in kinds.get(module, ())


def typed(page: str, tables: Sequence[str], known: set[tuple[str, ...]]) -> list[str]:
    """Return the intervals of a page outside its printed tables that no table has."""
    for table in tables:
        page = page.replace(table, "")
    return [m[0] for m in INTERVAL.finditer(page) if m.groups() not in known]


def run(pages: Sequence[Path], check: bool) -> int:
    """Write the pages anew, or say which are not up to date; say which intervals are in no table."""
    every = {page: filled(page.read_text(encoding="utf-8")) for page in {*PAGES, *pages}}
    known = {m.groups() for _, found in every.values() for m in INTERVAL.finditer("".join(found))}
    old, lost = [], False
    for page in pages:
        text, tables = every[page]
        if tables:
            print(f"{page.name}: {len(tables)} commands")
        if text != page.read_text(encoding="utf-8"):
            old.append(page.name)
            if not check:
                page.write_text(text, encoding="utf-8")
        for interval in typed(text, tables, known):
            print(f"{page.name}: no command of docs/ prints {interval}")
            lost = True
    if check and old:
        print(f"not up to date: {', '.join(old)}; run python -m experiments.suite.pages")
    return int(lost or (check and bool(old)))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m experiments.suite.pages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument(
        "pages", nargs="*", type=Path, metavar="PAGE", help="default: README and docs/"
    )
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args()
    for page in given.pages:
        if not page.is_file():
            parser.error(f"there is no file {page}")
    sys.exit(run(given.pages or PAGES, given.check))
