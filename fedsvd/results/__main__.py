"""python -m fedsvd.results FOLDER [--baseline NAME] [--csv FILE] [--figure FILE]: runs compared.

FOLDER holds run folders at any depth: a sweep, or runs put side by side. Prints means over seeds
with 95 % intervals and, with a baseline, paired differences over matched seeds; writes report.html
into FOLDER. Exit status: 0 done, 2 the input is wrong.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from rich.console import Console
from rich.table import Table

from fedsvd.errors import InputError
from fedsvd.files import write_text
from fedsvd.results.collect import find_runs, group_runs
from fedsvd.results.compare import Row, as_csv, compare, find_group
from fedsvd.results.sweep import HEADINGS, budget_figure, cells, write_sweep_report


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fedsvd.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folder", type=Path)
    parser.add_argument("--baseline", help="the group, or a part of its name, to compare with")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV")
    parser.add_argument(
        "--figure", type=Path, metavar="FILE", help="accuracy against epsilon, as .svg or .png"
    )
    given = parser.parse_args(arguments)
    try:
        _report(given.folder, given.baseline, given.csv, given.figure)
    except InputError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _report(folder: Path, baseline: str | None, table: Path | None, figure: Path | None) -> None:
    if not folder.is_dir():
        raise InputError(f"{folder}: is not a folder")
    if figure is not None and figure.suffix not in (".svg", ".png"):
        raise InputError(f"--figure: {str(figure)!r} must end in .svg or .png")
    runs, unfinished = find_runs(folder)
    groups = group_runs(runs)
    base = None if baseline is None else find_group(groups, baseline).name
    rows = compare(groups, base)
    drawn = budget_figure(groups)
    if figure is not None and drawn is None:
        raise InputError(f"--figure: no run in {folder} has an epsilon")
    show(rows)
    for run in unfinished:
        print(f"left out, unfinished: {run}")
    if table is not None:
        write_text(table, as_csv(rows))
    if figure is not None:
        drawn.savefig(figure, metadata={"Date": None} if figure.suffix == ".svg" else None)
    if (folder / "config.yaml").exists():
        return  # a run's own folder, which has the report of the run
    write_sweep_report(folder / "report.html", folder.resolve().name, groups, rows, base)
    print(f"report: {folder / 'report.html'}")


def show(rows: Sequence[Row]) -> None:
    """Print the rows as a table."""
    terminal = sys.stdout.isatty()
    table = Table(box=None, padding=(0, 2), header_style="bold")
    for heading in HEADINGS:
        table.add_column(heading, overflow="fold")
    for row in rows:
        table.add_row(*cells(row))
    Console(width=None if terminal else 160, highlight=False, markup=False).print(table)


if __name__ == "__main__":
    sys.exit(main())
