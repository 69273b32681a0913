"""From suite.yaml to runs."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import product
from pathlib import Path
from typing import Any, final

import yaml

FILE = Path(__file__).with_name("suite.yaml")
CLIP = {"none": "training.clip_norm"}  # of the others: of each example


@final
@dataclass(frozen=True)
class Cell:
    """What one method is tuned for, and reported in."""

    task: str
    model: str
    clients: str
    head: str
    budget: str
    method: str

    @property
    def setting(self) -> tuple[str, str, str, str, str]:
        """Return what the methods of one table share."""
        return (self.task, self.model, self.clients, self.head, self.budget)

    @property
    def name(self) -> str:
        """Return the cell as the folder of its runs."""
        return "/".join((*self.setting, self.method))

    def of(self, method: str) -> "Cell":
        """Return the cell of a method in the same setting."""
        return replace(self, method=method)


@final
@dataclass(frozen=True)
class Trial:
    """One run: a cell, the stage it is for, and what is chosen."""

    cell: Cell
    stage: str  # "search" or "report"
    lr: float
    clip: float
    seed: int

    @property
    def key(self) -> tuple[Any, ...]:
        """Return what tells it from all other runs of the suite."""
        return (self.cell, self.stage, float(self.lr), float(self.clip), self.seed)


def load(file: Path = FILE) -> dict[str, Any]:
    """Return the suite as written."""
    return dict(yaml.safe_load(file.read_text(encoding="utf-8")))


def cells(suite: dict[str, Any], **chosen: Sequence[str]) -> Iterator[Cell]:
    """Yield the cells of the chosen names, method by method within a budget.

    What stands under `without` is left out: it could only fail. Raises KeyError for a name that the
    suite does not have.
    """
    axes = []
    for group in ("tasks", "models", "clients", "heads", "budgets", "methods"):
        names = list(chosen.get(group) or suite[group])
        for name in names:
            if name not in suite[group]:
                raise KeyError(f"{group}: {name!r} is not in suite.yaml; {', '.join(suite[group])}")
        axes.append(names)
    for task, model, clients, head, budget, method in product(*axes):
        cell = Cell(task, model, clients, head, budget, method)
        if not any(_fits(cell, pattern) for pattern in suite["without"]):
            yield cell


def _fits(cell: Cell, pattern: dict[str, str]) -> bool:
    return all(getattr(cell, axis) == name for axis, name in pattern.items())


def grid(suite: dict[str, Any], cell: Cell) -> Iterator[Trial]:
    """Yield the runs of the search of a cell."""
    for seed, (lr, clip) in product(suite["search"]["seeds"], choices(suite, cell)):
        yield Trial(cell, "search", lr, clip, seed)


def choices(suite: dict[str, Any], cell: Cell) -> list[tuple[float, float]]:
    """Return the (lr, clip) of a cell's search: one grid for all of SGD, one for all of AdamW.

    Of SGD it is laid over `step` = lr x clip, the longest step that what is clipped can cause: with
    that held, the clip says how much of what is above it still tells examples apart. A
    method that names its rate has no other.
    """
    given = suite["search"]
    if (lr := own_rate(suite, cell)) is not None:
        return [(lr, float(clip)) for clip in given["clip"]]
    if "training.optimizer=adamw" in suite["methods"][cell.method]:
        return [(float(lr), float(clip)) for clip in given["clip"] for lr in given["lr_adamw"]]
    return [(step / clip, float(clip)) for clip in given["clip"] for step in given["step"]]


def own_rate(suite: dict[str, Any], cell: Cell) -> float | None:
    """Return the rate that a cell's method names, None if it is searched."""
    named = [o for o in suite["methods"][cell.method] if o.startswith("training.lr=")]
    return float(named[-1].partition("=")[2]) if named else None


def overrides(suite: dict[str, Any], trial: Trial) -> list[str]:
    """Return the command line of a run. What a method says comes last, so it may change the rest."""
    cell = trial.cell
    clip = CLIP.get(cell.budget, "privacy.clip_norm")
    return [
        *suite["common"],
        *suite["models"][cell.model]["overrides"],
        *suite["tasks"][cell.task],
        *suite["clients"][cell.clients],
        *suite["heads"][cell.head],
        *suite["budgets"][cell.budget],
        f"training.lr={trial.lr}",
        f"{clip}={trial.clip}",
        *suite["methods"][cell.method],
        f"recorder.test={'false' if trial.stage == 'search' else 'true'}",
        f"seed={trial.seed}",
    ]
