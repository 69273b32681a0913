"""Recorded runs of a study, a JSON line each, and the table that they make.

python -m experiments.table add RESULTS.jsonl RUN SETTING VARIANT SEED    records a finished run
python -m experiments.table show RESULTS.jsonl BASELINE [FIGURE.svg]      prints a table per setting

The table has the mean over seeds and the paired difference to BASELINE over matched seeds, with 95 %
intervals (Student's t), the largest epsilon that a client spent, and the replies left out of rounds.
The figure has the differences.
"""

import json
import sys
from collections import defaultdict
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib

from fedsvd.pages import BLUE, GREY, canvas, label
from fedsvd.results.compare import Estimate, estimate, shown

KEYS = (
    "accuracy",
    "test_accuracy",
    "epsilon_max",
    "failures",
    "state_digest",
    "seconds",
    "bytes_up",
)
HEADER = "| variant | seeds | validation | difference | test | difference | epsilon | left out |"


def add(results: Path, run: Path, setting: str, variant: str, seed: int) -> None:
    summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
    line = {"setting": setting, "variant": variant, "seed": seed}
    with results.open("a", encoding="utf-8") as file:
        file.write(json.dumps({**line, **{k: summary.get(k) for k in KEYS}}) + "\n")


# setting: variant: seed: run
Runs = dict[str, dict[str, dict[int, Any]]]


def read(results: Path) -> Runs:
    runs: Runs = defaultdict(lambda: defaultdict(dict))
    for line in results.read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        runs[run["setting"]][run["variant"]][run["seed"]] = run
    return runs


def differences(
    found: dict[int, Any], base: dict[int, Any], key: str = "accuracy"
) -> Estimate | None:
    """Return the mean difference over the seeds that both have, with its interval."""
    return estimate([found[seed][key] - base[seed][key] for seed in sorted(found.keys() & base)])


def show(runs: Runs, baseline: str) -> None:
    for setting, variants in runs.items():
        base = variants.get(baseline, {})
        print(f"\n**{setting}**\n")
        print(HEADER)
        print("|---" * 8 + "|")
        for variant, found in variants.items():
            cells = []
            for key in ("accuracy", "test_accuracy"):
                cells.append(shown(estimate([r[key] for r in found.values()])))
                apart = None if variant == baseline else differences(found, base, key)
                cells.append(shown(apart, signed=True))
            seeds = " ".join(map(str, sorted(found)))
            spent = [r["epsilon_max"] for r in found.values() if r["epsilon_max"] is not None]
            cells.append(f"{max(spent):.3f}" if spent else "-")
            cells.append(str(sum(r.get("failures", 0) for r in found.values())))
            print(f"| {variant} | {seeds} | {' | '.join(cells)} |")


def draw(runs: Runs, baseline: str, path: Path) -> None:
    """Draw the differences in validation accuracy, a panel for each setting."""
    most = max(len(variants) for variants in runs.values())
    figure, axes = canvas(len(runs))
    figure.set_size_inches(3.6 * len(runs) + 1, 0.2 * most + 1)
    for axis, (setting, variants) in zip(axes, runs.items(), strict=True):
        base = variants.get(baseline, {})
        found = {v: differences(r, base) for v, r in variants.items() if v != baseline}
        known = {v: e for v, e in found.items() if e is not None}
        axis.axvline(0, color=GREY, lw=1)
        axis.errorbar(
            [e.mean for e in known.values()], range(len(known)), fmt=".", color=BLUE, lw=1,
            xerr=[e.half or 0 for e in known.values()],
        )  # fmt: skip
        axis.set_yticks(range(len(known)), list(known), fontsize=7)
        axis.invert_yaxis()
        axis.set_title(setting, fontsize=9)
        label(axis, f"accuracy minus that of {baseline}", "")
    with matplotlib.rc_context({"svg.hashsalt": "fedsvd"}):  # the same file every time
        figure.savefig(path, metadata={"Date": None})


def main(argv: Sequence[str]) -> int:
    """Add a run to a record, or show it as a table."""
    what, file, *rest = argv
    if what == "add":
        add(Path(file), Path(rest[0]), rest[1], rest[2], int(rest[3]))
    else:
        recorded = read(Path(file))
        show(recorded, rest[0])
        if len(rest) > 1:
            draw(recorded, rest[0], Path(rest[1]))
    return 0


if __name__ == "__main__":
    main(sys.argv[1:])
