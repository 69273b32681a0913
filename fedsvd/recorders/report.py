"""report.html: a run on one self-contained page, without what is private."""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsvd.files import write_text
from fedsvd.objectives.metric import GENERATED, metric_of
from fedsvd.pages import page
from fedsvd.privacy.plan import noise_source, warnings_of
from fedsvd.recorders import curves, subspace, tables
from fedsvd.recorders.view import View
from fedsvd.rounds.record import Start, Summary, TaskRecord

APART = ("singular_values", "confusion", "test_by_client", "versions", "command")


def write_report(path: Path, start: Start, summary: Summary, config: str = "") -> None:
    """Write the page: facts, figures over rounds, labels, clients, the subspace, how it was made.

    Everything is inline, and text from configuration and data is escaped. What is held back by
    `fedsvd.recorders.view` is not on it. `config` is the resolved configuration.
    """
    view = View.of(start.settings, start.plan)
    start, summary = view.start(start), view.summary(summary)
    history, plan, values = summary.history, start.plan, summary.values
    metric = metric_of(values)
    drawn = (
        curves.metric_and_loss(history, metric, tables.baseline(history)),
        curves.epsilon(history, plan),
        curves.norms(history, plan),
        *subspace.story(history, values["singular_values"]),
    )
    mixes = [_mix(start.task.labels, counts) for counts in start.task.clients]
    text = page(
        __package__,
        "report.html",
        summary={k: v for k, v in values.items() if k not in APART},
        metric=metric,
        generated=GENERATED,
        plan=plan,
        noise=noise_source(plan),
        warnings=warnings_of(plan),
        figures=[figure for figure in drawn if figure],
        labels=tables.labels(values),
        by_client=tables.by_client(values, metric),
        clients=tables.clients(summary.ledger["clients"], plan, view.counts, mixes),
        made=_made(start, values),
        versions=values.get("versions") or {},
        command=values.get("command") or "",
        config=config,
        counts=view.counts,
    )
    write_text(path, text)


def _made(start: Start, values: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return how the run was made: a name and a fact a line."""
    task, plan, model = start.task, start.plan, start.model
    unit = f"one {plan.unit}; {str(plan.threat_model).replace('_', ' ')}"
    found = [
        ("data", f"{task.name} from {task.source}: {_sizes(task)}"),
        ("labels", ", ".join(task.labels) if start.settings.labelled else ""),
        ("model", f"{start.settings.model.name} from {model.origin}; {model.trained:,} of "
                  f"{model.parameters:,} parameters train"),
        ("partition", start.settings.partition.name),
        ("protected", unit if plan.private else "nothing"),
        ("evaluated", str(values.get("evaluated") or "")),
        ("exported", _exported(values)),
    ]  # fmt: skip
    return [(name, fact) for name, fact in found if fact]


def _exported(values: Mapping[str, Any]) -> str:
    """Return which model is exported, "" where it is the one that is evaluated."""
    told = str(values.get("exported") or "")
    return "" if told == values.get("evaluated") else told


def _sizes(task: TaskRecord) -> str:
    parts = {"training": task.train, "validation": task.validation, "test": task.test}
    told = [f"{n:,} {name}" for name, n in parts.items() if n]
    return f"{', '.join(told)} examples"


def _mix(labels: Sequence[str], counts: Sequence[int]) -> str:
    """Return how many examples of each label a client holds."""
    held = [f"{name}: {n}" for name, n in zip(labels, counts, strict=True) if n]
    return ", ".join(held) or "on its own machine"
