"""What the user sees: a header, live progress, a summary."""

import sys
import time
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.table import Table

from fedsvd.adapters.build import lacks_public
from fedsvd.privacy.plan import PrivacyPlan, noise_source
from fedsvd.recorders.recorder import Recorder
from fedsvd.rounds.record import RoundRecord, Start, Summary
from fedsvd.settings import Settings

GRADIENTS = {
    "hooks": "of each example by hooks, found right for this model",
    "loop": "of each example alone, one at a time",
}


@final
class Screen(Recorder):
    """Prints a run: rich tables and a live bar on a terminal, plain lines elsewhere."""

    def __init__(self, folder: Path, stream: Any = None) -> None:
        stream = stream or sys.stdout
        self._folder = folder
        self._live = bool(getattr(stream, "isatty", lambda: False)())
        width = None if self._live else 120
        self._console = Console(file=stream, width=width, highlight=False)
        self._progress: Progress | None = None
        self._began = time.perf_counter()

    def start(self, start: Start) -> None:
        """Print the header and start the bar."""
        _header(self._console, start)
        self._began = time.perf_counter()
        if self._live:
            self._progress = Progress(
                TextColumn("round"),
                MofNCompleteColumn(),
                BarColumn(),
                TextColumn("{task.description}"),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._progress.add_task("", total=start.rounds)
            self._progress.start()

    def round(self, record: RoundRecord) -> None:
        """Print the round's line and move the bar."""
        number, total, metrics = record.round, record.rounds, record.metrics
        text = _round_line(metrics)
        if self._progress is not None:
            self._progress.update(self._task, completed=number, description=text)
            if _trouble(metrics):
                self._console.print(_trouble(metrics), style="yellow")
            return
        left = (time.perf_counter() - self._began) / max(number, 1) * (total - number)
        clock = f"  left {_clock(left)}" if 0 < number < total else ""
        self._console.print(f"round {number:>{len(str(total))}}/{total}  {text}{clock}")
        if _trouble(metrics):
            self._console.print(_trouble(metrics))

    def finish(self, summary: Summary) -> None:
        """Stop the bar and print the summary."""
        self.close()
        table = Table.grid(padding=(0, 2))
        told = summary.values
        rows = [
            (
                "validation accuracy",
                f"{told['accuracy']:.4f}  (best {told['best_accuracy']:.4f})",
            ),
            ("test accuracy", _number(told["test_accuracy"], ".4f")),
            ("epsilon spent", _spent(told)),
            *_published(told),
            ("sent up / down", f"{_size(told['bytes_up'])} / {_size(told['bytes_down'])}"),
            ("time", _clock(told["seconds"])),
            ("state digest", told["state_digest"][:16]),
            ("run folder", str(self._folder)),
        ]
        for row in rows:
            table.add_row(*row)
        self._console.print()
        self._console.print(table, soft_wrap=True)

    def close(self) -> None:
        """Stop the live bar, if there is one."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None


def _header(console: Console, start: Start) -> None:
    settings, task, model, plan = start.settings, start.task, start.model, start.plan
    chosen = settings.model
    facts = [
        ("task", f"{task.name} from {task.source}: {task.train} train, {task.validation} validation, "
                 f"{task.test} test ({task.duplicates} duplicates dropped)"),
        ("model", f"{chosen.name} from {model.origin}; {chosen.pooling} pooling, head {chosen.head}"),
        ("adapter", _adapter(settings)),
        ("strategy", settings.strategy.target),
        ("trains", f"{model.trained:,} of {model.parameters:,} parameters"),
        ("privacy", _budget(plan)),
        *([("noise", noise_source(plan))] if plan.private else []),
        *([("gradients", GRADIENTS[plan.gradients])] if plan.gradients else []),
        ("runs on", f"{model.device}, {model.precision}"
                    f"{' (auto)' if settings.training.precision == 'auto' else ''}"),
    ]  # fmt: skip
    if lacks_public(settings):
        seen = min(settings.adapter.calibration, task.validation)
        told = "texts of validation, which stand for public ones (data.public=0)"
        facts.append(("starts from", f"{seen} {told}: its accuracy is not of unseen texts"))
    grid = Table.grid(padding=(0, 2))
    for fact in facts:
        grid.add_row(*fact)
    console.print(grid)
    console.print()
    if len(plan.clients) <= 20:
        console.print(_clients(start))
    else:
        _many_clients(console, plan)
    console.print()


def _clients(start: Start) -> Table:
    """Return a table of the clients: what they hold, their rates, noise and bounds."""
    table = Table(box=None, padding=(0, 2), header_style="bold")
    for name in ("client", "examples", "labels", "rate", "steps <=", "noise", "epsilon <="):
        table.add_column(name, justify="left" if name == "labels" else "right")
    for planned in start.plan.clients:
        counts = start.task.clients[planned.client]
        held = sum(counts)
        named = zip(start.task.labels, counts, strict=True)
        mix = "  ".join(f"{name} {count / held:.0%}" for name, count in named) if held else ""
        table.add_row(
            str(planned.client), f"{planned.examples:,}", mix or "on its own machine",
            f"{planned.accounted_rate:.3f}", str(planned.steps_bound),
            _number(planned.noise_multiplier or None, ".3f"),
            _number(planned.epsilon_bound, ".3f"),
        )  # fmt: skip
    return table


def _many_clients(console: Console, plan: PrivacyPlan) -> None:
    sizes = [c.examples for c in plan.clients]
    console.print(f"{len(sizes)} clients of {min(sizes):,} to {max(sizes):,} examples")
    if plan.private:
        noise = [c.noise_multiplier for c in plan.clients]
        console.print(
            f"noise multiplier {min(noise):.3f} to {max(noise):.3f}, at most "
            f"{max(c.steps_bound for c in plan.clients)} steps a client, epsilon at most "
            f"{max(c.epsilon_bound or 0 for c in plan.clients):.3f}"
        )


def _adapter(settings: Settings) -> str:
    adapter = settings.adapter
    if adapter.name == "none":
        return "none (head only)"
    return (
        f"{adapter.label}, rank {adapter.rank}, alpha {adapter.alpha:g} "
        f"on {', '.join(adapter.targets)}"
    )


def _budget(plan: PrivacyPlan) -> str:
    if not plan.private:
        return "none"
    what = {"dp_sgd": "DP-SGD at the clients", "client_gaussian": "noise at the server"}
    if plan.epsilon is None:
        most = max(c.epsilon_bound or 0 for c in plan.clients)
        budget = f"noise multiplier {plan.clients[0].noise_multiplier:g}, costs epsilon {most:.4g}"
    else:
        budget = f"epsilon {plan.epsilon:g}"
    threats, clipping = str(plan.threat_model), str(plan.clipping)
    return (
        f"{what[plan.mechanism]}, unit: one {plan.unit}; {budget} at delta {plan.delta:g} "
        f"({str(plan.accountant).upper()}), {clipping.replace('_', ' ')} clip {plan.clip_norm:g}; "
        f"counts {'public' if plan.public_counts else 'private'}, "
        f"{threats.replace('_', ' ')}"
    )


def _round_line(metrics: Mapping[str, Any]) -> str:
    if "accuracy" in metrics:
        parts = [f"loss {metrics['loss']:.4f}", f"accuracy {metrics['accuracy']:.4f}"]
    else:  # the global state is evaluated every recorder.evaluate_every rounds
        parts = [f"clients' loss {_number(metrics.get('train_loss'), '.4f')}"]
    if metrics.get("epsilon_max") is not None:
        parts.append(f"epsilon {metrics['epsilon_max']:.3f}")
    if metrics.get("clients"):
        parts.append("clients " + ",".join(map(str, metrics["clients"])))
    return "  ".join(parts)


def _trouble(metrics: Mapping[str, Any]) -> str:
    lines = [f"  client {k} {why}; left out" for k, why in metrics.get("failed", {}).items()]
    lines += [f"  client {k} has spent its budget; sits out" for k in metrics.get("sat_out", [])]
    if metrics.get("not_aggregated"):
        n = metrics["not_aggregated"]
        lines.append(f"  the strategy made nothing of {n} valid replies; the state stays")
    if metrics.get("ended"):
        lines.append(f"  the run ends here: {metrics['ended']}")
    return "\n".join(lines)


def _number(value: float | None, form: str) -> str:
    return "-" if value is None else format(value, form)


def _spent(summary: Mapping[str, Any]) -> str:
    if summary["epsilon_max"] is None:
        return "no privacy"
    target = f" of {summary['epsilon_target']:g}" if summary["epsilon_target"] is not None else ""
    spent = f"{summary['epsilon_max']:.4f}{target}"
    return f"{spent} at delta {summary['delta']:g} (largest of any client)"


def _published(summary: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return the line of the second figure, with what it assumes; none without privacy."""
    if summary["epsilon_max"] is None or "epsilon_published" not in summary:
        return []
    figure, assumed = summary["epsilon_published"], summary["epsilon_published_assumed"]
    return [("epsilon, published", f"{_number(figure, '.4f')}  ({assumed})")]


def _size(count: int) -> str:
    return f"{count / 1e6:.2f} MB"


def _clock(seconds: float) -> str:
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes}:{rest:02d}"
