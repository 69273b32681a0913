"""python -m fedsvd.results FOLDER [--baseline NAME] [--csv FILE] [--figure FILE]: runs compared.

FOLDER holds run folders at any depth: a sweep, or runs put side by side. Prints means over seeds
with 95 % intervals and, with a baseline, paired differences over matched seeds; writes report.html
into FOLDER. Exit status: 0 done, 2 the input is wrong, 1 a file cannot be written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from fedsvd.errors import InputError
from fedsvd.files import write_text
from fedsvd.objectives.metric import Metric
from fedsvd.results.collect import find_runs, group_runs, metric_of_groups
from fedsvd.results.compare import Row, as_csv, compare, find_group
from fedsvd.results.sweep import budget_figure, cells, headings, write_sweep_report
from fedsvd.terminal import columns, guarded, plain, say, status_of


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
        "--figure",
        type=Path,
        metavar="FILE",
        help="the runs' figure against epsilon, as .svg or .png",
    )
    with guarded():
        given = parser.parse_args(arguments)
        return status_of(lambda: _report(given.folder, given.baseline, given.csv, given.figure))


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
    metric = metric_of_groups(groups)
    show(rows, metric)
    for run in unfinished:
        say(f"left out, unfinished: {run}")
    if table is not None:
        write_text(table, as_csv(rows, metric))
    if figure is not None:
        drawn.savefig(figure, metadata={"Date": None} if figure.suffix == ".svg" else None)
    if (folder / "config.yaml").exists():
        return  # a run's own folder, which has the report of the run
    write_sweep_report(folder / "report.html", folder.resolve().name, groups, rows, base)
    say(f"report: {folder / 'report.html'}")


def show(rows: Sequence[Row], metric: Metric) -> None:
    """Print the rows as a table, the name of the group last: it may be long, and is never cut."""
    told = [headings(metric), *(cells(row) for row in rows)]
    lines = columns([[plain(cell) for cell in (*row[1:], row[0])] for row in told], left=range(9))
    say("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
