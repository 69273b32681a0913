"""Recorded runs of the suite, a JSON line each, and what the search chose."""

import json
from collections import defaultdict
from collections.abc import Iterator, Sequence
from dataclasses import asdict
from itertools import product
from pathlib import Path
from statistics import fmean
from typing import Any

from experiments.suite.plan import Cell, Trial, own_rate

Runs = dict[tuple[Any, ...], dict[str, Any]]  # by `Trial.key`
AXES = ("task", "model", "clients", "head", "budget", "method")
KEYS = (
    "accuracy", "test_accuracy", "loss", "epsilon_max", "epsilon_target", "accounting",
    "state_digest", "seconds",
)  # fmt: skip


def record(file: Path, trial: Trial, run: Path, status: int) -> None:
    """Add a run to the file: what came of it, or why nothing did."""
    line: dict[str, Any] = asdict(trial.cell) | {
        "stage": trial.stage, "lr": trial.lr, "clip": trial.clip, "seed": trial.seed
    }  # fmt: skip
    if status:
        log = Path(f"{run}.log")
        said = log.read_text(encoding="utf-8", errors="replace").strip() if log.exists() else ""
        line["failed"] = said.splitlines()[-1][:300] if said else f"status {status}"
    else:
        summary = json.loads((run / "summary.json").read_text(encoding="utf-8"))
        line |= {key: summary.get(key) for key in KEYS}
        rounds = [json.loads(x) for x in (run / "metrics.jsonl").read_text().splitlines()]
        line["curve"] = {  # on the same rows in all rounds
            m["round"]: round(m.get("subset_accuracy", m["accuracy"]), 4)
            for m in rounds
            if "accuracy" in m
        }
    file.parent.mkdir(parents=True, exist_ok=True)
    with file.open("a", encoding="utf-8") as out:
        out.write(json.dumps(line) + "\n")


def read(*files: Path, lr: float | None = None) -> Runs:
    """Return the recorded runs by `Trial.key`; of a run that was made again, the last.

    With a rate, those at this rate alone: it is then the best of every method.
    """
    found = {}
    texts = [file.read_text(encoding="utf-8") for file in files if file.exists()]
    for line in (json.loads(line) for text in texts for line in text.splitlines()):
        if lr is not None and line["lr"] != lr:
            continue
        cell = Cell(*(line[axis] for axis in AXES))
        trial = Trial(cell, line["stage"], line["lr"], line["clip"], line["seed"])
        found[trial.key] = line
    return found


def best(runs: Runs, cell: Cell) -> tuple[float, float] | None:
    """Return the (lr, clip) of a cell's search with the best validation accuracy, None without one.

    The mean over the search's seeds counts; a setting in which a run failed is not chosen. Of equal
    ones the smaller rate is taken, then the smaller clip.
    """
    scores: dict[tuple[float, float], list[float]] = defaultdict(list)
    lost = set()
    for (where, stage, lr, clip, _), line in runs.items():
        if where == cell and stage == "search":
            if line.get("accuracy") is None:
                lost.add((lr, clip))
            else:
                scores[lr, clip].append(line["accuracy"])
    left = {choice: fmean(values) for choice, values in scores.items() if choice not in lost}
    return min(left, key=lambda c: (-left[c], c)) if left else None


def neighbours(suite: dict[str, Any], runs: Runs, cell: Cell) -> Iterator[Trial]:
    """Yield the runs at half and at twice the best rate of a cell's search, at its clip.

    There are none of a method that names its rate.
    """
    if own_rate(suite, cell) is None and (found := best(runs, cell)) is not None:
        for seed, factor in product(suite["search"]["seeds"], (0.5, 2)):
            yield Trial(cell, "search", found[0] * factor, found[1], seed)


def searched_at(runs: Runs, cells: Sequence[Cell]) -> list[tuple[float, float]]:
    """Return the (lr, clip) that the search of any of the cells has tried, by clip and rate."""
    tried = {key[2:4] for key in runs if key[1] == "search" and key[0] in cells}
    return sorted(tried, key=lambda choice: choice[::-1])


def edges(runs: Runs, cell: Cell, choice: tuple[float, float]) -> Sequence[str]:
    """Return which of "lr" and "clip" was chosen at an end of what was tried."""
    tried = searched_at(runs, [cell])
    rates = [lr for lr, clip in tried if clip == choice[1]]
    clips = sorted({clip for _, clip in tried})
    ends = {"lr": choice[0] in (min(rates, default=None), max(rates, default=None))}
    ends["clip"] = len(clips) > 2 and choice[1] in (clips[0], clips[-1])
    return [name for name, at in ends.items() if at]
