"""Recorded runs of a study, a JSON line each, and the table that they make.

python -m experiments.table add RESULTS.jsonl RUN SETTING VARIANT SEED    records a finished run
python -m experiments.table show RESULTS.jsonl BASELINE                   prints a table per setting

The table has the mean over seeds and the paired difference to BASELINE over matched seeds, with 95 %
intervals (Student's t), the largest epsilon that a client spent, and the replies left out of rounds.
"""

import json
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

from fedsvd.results.compare import estimate, shown

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


def show(results: Path, baseline: str) -> None:
    runs: dict[str, dict[str, dict[int, Any]]] = defaultdict(lambda: defaultdict(dict))
    for line in results.read_text(encoding="utf-8").splitlines():
        run = json.loads(line)
        runs[run["setting"]][run["variant"]][run["seed"]] = run
    for setting, variants in runs.items():
        base = variants.get(baseline, {})
        print(f"\n{setting}\n")
        print(HEADER)
        print("|---" * 8 + "|")
        for variant, found in variants.items():
            cells = []
            for key in ("accuracy", "test_accuracy"):
                cells.append(shown(estimate([r[key] for r in found.values()])))
                common = [s for s in sorted(found) if s in base and variant != baseline]
                differences = [found[s][key] - base[s][key] for s in common]
                cells.append(shown(estimate(differences), signed=True))
            seeds = " ".join(map(str, sorted(found)))
            spent = [r["epsilon_max"] for r in found.values() if r["epsilon_max"] is not None]
            cells.append(f"{max(spent):.3f}" if spent else "-")
            cells.append(str(sum(r.get("failures", 0) for r in found.values())))
            print(f"| {variant} | {seeds} | {' | '.join(cells)} |")


if __name__ == "__main__":
    what, file, *rest = sys.argv[1:]
    if what == "add":
        add(Path(file), Path(rest[0]), rest[1], rest[2], int(rest[3]))
    else:
        show(Path(file), rest[0])
