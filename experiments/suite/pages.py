"""python -m experiments.suite.pages [--check] [PAGE ...]: the tables of docs/ from the records.

A page of docs/ shows a command of `python -m experiments.suite` (table, gains, rates, or room with
--table) as a block of its own, and what it prints below. This writes below each such command what it
prints now. With --check it writes nothing, and ends with status 1 if a page is not up to date. A
command with "..." or a word in capital letters is not complete, and is left alone.
"""

import argparse
import contextlib
import io
import re
import shlex
import sys
from collections.abc import Iterator, Sequence
from pathlib import Path

from experiments.suite.__main__ import PRINTED
from experiments.suite.__main__ import main as suite
from experiments.suite.room import main as room

ROOT = Path(__file__).parents[2]
# What `table` and `rates` print above each of their tables.
HEADING = re.compile(r"\*\*[^*]+, epsilon [^*]+\*\*$")


def filled(page: str) -> tuple[str, int]:
    """Return the page with the tables as the commands print them, and how many lines these have."""
    lines, made, count = page.splitlines(), [], 0
    at = 0
    while at < len(lines):
        end = at
        while end < len(lines) and lines[end].startswith("    "):
            end += 1
        last = below(lines, end + 1)
        printed = "\n".join(outputs(lines[at:end])) if last > end + 1 else ""
        if printed:
            made += [*lines[at:end], "", *printed.splitlines()]
            count += printed.count("\n")
            at = last
        else:
            made += lines[at : max(end, at + 1)]
            at = max(end, at + 1)
    return ("\n".join(made) + "\n", count) if count else (page, 0)


def below(lines: Sequence[str], start: int) -> int:
    """Return where the tables that begin at a line end: their headings and what parts them too."""
    end = start
    for at in range(start, len(lines)):
        if lines[at].startswith("|") or HEADING.match(lines[at]):
            end = at + 1
        elif lines[at]:
            break
    return end


def outputs(block: Sequence[str]) -> Iterator[str]:
    """Yield what each complete command of a block prints."""
    for command in re.sub(r"\\\n\s*", "", "\n".join(block)).splitlines():
        if not command.strip().startswith("python -m experiments.suite"):
            continue
        module, *words = shlex.split(command)[2:]
        prints = module == "experiments.suite.room" and "--table" in words
        if module == "experiments.suite":
            prints = bool(words) and words[0] in PRINTED
        if not prints or any(word == "..." or re.fullmatch("[A-Z]+", word) for word in words):
            continue
        said = io.StringIO()
        with contextlib.chdir(ROOT), contextlib.redirect_stdout(said):
            if (suite if module == "experiments.suite" else room)(words):
                raise SystemExit(f"failed: {command}")
        yield said.getvalue().lstrip("\n")


def run(pages: list[Path], check: bool) -> int:
    """Write the pages anew, or say which are not up to date."""
    old = []
    for page in pages:
        text = page.read_text(encoding="utf-8")
        new, lines = filled(text)
        if lines:
            print(f"{page.name}: {lines} lines")
        if new != text:
            old.append(page.name)
            if not check:
                page.write_text(new, encoding="utf-8")
    if check and old:
        print(f"not up to date: {', '.join(old)}; run python -m experiments.suite.pages")
    return int(check and bool(old))


if __name__ == "__main__":
    parser = argparse.ArgumentParser(
        prog="python -m experiments.suite.pages",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("pages", nargs="*", type=Path, metavar="PAGE", help="default: all of docs/")
    parser.add_argument("--check", action="store_true", help="write nothing")
    given = parser.parse_args()
    for page in given.pages:
        if not page.is_file():
            parser.error(f"there is no file {page}")
    sys.exit(run(given.pages or sorted((ROOT / "docs").glob("*.md")), given.check))
