"""python -m fedsvd.results FOLDER ... [--group-by KEYS] [--filter KEY=VALUE] [--metric NAME] ...

Runs compared. Each FOLDER holds run folders at any depth: a sweep, or runs put side by side. Prints
means over seeds with 95 % intervals and, with a baseline, paired differences over matched seeds;
writes report.html into the folder, or into this one where there are several.
Exit status: 0 done, 2 the input is wrong, 1 a file cannot be written.
"""

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from fedsvd.errors import InputError
from fedsvd.files import write_text
from fedsvd.objectives.metric import Metric
from fedsvd.results.collect import filtered, find_in, group_runs, metric_of_groups
from fedsvd.results.compare import Row, as_csv, compare, find_group
from fedsvd.results.figures import budget_figure
from fedsvd.results.sweep import cells, headings, write_sweep_report
from fedsvd.terminal import columns, guarded, plain, say, status_of


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command and return the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m fedsvd.results",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
    )
    parser.add_argument("folders", type=Path, nargs="+", metavar="FOLDER")
    parser.add_argument(
        "--group-by", metavar="KEY,...", default="",
        help="the settings that alone make groups, as strategy or privacy.epsilon",
    )  # fmt: skip
    parser.add_argument(
        "--filter", action="append", default=[], metavar="KEY=VALUE[,VALUE]",
        help="leave out runs of other settings; may be repeated",
    )  # fmt: skip
    parser.add_argument(
        "--metric", metavar="NAME", help="another figure, as test_accuracy, macro_f1, mcc or loss"
    )
    parser.add_argument("--baseline", help="the group, or a part of its name, to compare with")
    parser.add_argument("--csv", type=Path, metavar="FILE", help="write the table as CSV")
    parser.add_argument(
        "--figure",
        type=Path,
        metavar="FILE",
        help="the runs' figure against epsilon, as .svg or .png",
    )
    parser.add_argument("--out", type=Path, metavar="FILE", help="the report, in another place")
    with guarded():
        given = parser.parse_args(arguments)
        return status_of(lambda: _report(given))


def _report(given: Any) -> None:
    folders: list[Path] = given.folders
    for folder in folders:
        if not folder.is_dir():
            raise InputError(f"{folder}: is not a folder")
    figure: Path | None = given.figure
    if figure is not None and figure.suffix not in (".svg", ".png"):
        raise InputError(f"--figure: {str(figure)!r} must end in .svg or .png")
    runs, unfinished = find_in(folders)
    by = [key.strip() for key in given.group_by.split(",") if key.strip()]
    groups = group_runs(filtered(runs, given.filter), by)
    metric = metric_of_groups(groups, given.metric)
    base = None if given.baseline is None else find_group(groups, given.baseline).name
    rows = compare(groups, base, metric)
    drawn = budget_figure(groups, metric)
    if figure is not None and drawn is None:
        raise InputError(f"--figure: no run in {', '.join(map(str, folders))} has an epsilon")
    show(rows, metric)
    for run in unfinished:
        say(f"left out, unfinished: {run}")
    if given.csv is not None:
        write_text(given.csv, as_csv(rows, metric))
    if figure is not None:
        date: Any = {"Date": None} if figure.suffix == ".svg" else None
        drawn.savefig(figure, metadata=date, bbox_inches="tight")
    out: Path | None = given.out
    if out is None and len(folders) == 1 and (folders[0] / "config.yaml").exists():
        return  # a run's own folder, which has the report of the run
    out = out or (folders[0] if len(folders) == 1 else Path()) / "report.html"
    title = ", ".join(folder.resolve().name for folder in folders)
    write_sweep_report(out, title, groups, rows, base, metric)
    say(f"report: {out}")


def show(rows: Sequence[Row], metric: Metric) -> None:
    """Print the rows as a table, the name of the group last: it may be long, and is never cut."""
    told = [headings(metric), *(cells(row, metric) for row in rows)]
    lines = columns([[plain(cell) for cell in (*row[1:], row[0])] for row in told], left=range(9))
    say("\n".join(lines))


if __name__ == "__main__":
    sys.exit(main())
