"""How the trials of a sweep go: what is known of each, and the live table."""

import enum
import json
import sys
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, final

from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from fedsvd.objectives.metric import MAIN, metric_of
from fedsvd.settings import Settings
from fedsvd.sweep.trial import LOG, SUMMARY, Outcome
from fedsvd.terminal import columns, output, plain

HEADINGS = ("trial", "state", "round", "epsilon", "overrides")


class State(enum.Enum):
    """Where a trial stands."""

    WAITING = "waiting"
    RUNNING = "running"
    DONE = "done"
    KEPT = "done before"
    FAILED = "failed"


@dataclass
class Trial:
    """One point of a sweep: what it is, and what is known of how it goes."""

    number: int
    folder: Path
    config: Mapping[Any, Any]  # resolved
    overrides: Sequence[str]
    settings: Settings
    name: str = ""  # what tells it from the others
    state: State = State.WAITING
    attempts: int = 0
    summary: Mapping[str, Any] | None = None
    reason: str = ""  # of a failure, or of the last attempt's end
    refused: bool = False
    latest: dict[str, Any] = field(default_factory=dict)  # of metrics.jsonl: round, accuracy, ...
    _read: int = 0  # bytes of metrics.jsonl

    def found(self) -> None:
        """Take the finished run that its folder holds."""
        text = (self.folder / SUMMARY).read_text(encoding="utf-8")
        self.ended(Outcome(json.loads(text)))
        self.state = State.KEPT

    def submitted(self) -> None:
        """Note that an attempt begins, in an empty folder."""
        self.attempts, self.latest, self._read = self.attempts + 1, {}, 0

    def died(self, reason: str) -> None:
        """Note that an attempt came to nothing and another follows."""
        self.state, self.reason = State.WAITING, reason

    def ended(self, outcome: Outcome) -> None:
        """Take the outcome of the last attempt."""
        self.summary, self.reason, self.refused = outcome.summary, outcome.reason, outcome.refused
        self.state = State.FAILED if outcome.summary is None else State.DONE
        if outcome.summary is not None:
            keys = (*(metric.name for metric in MAIN), "epsilon_max")
            known = {k: outcome.summary[k] for k in keys if k in outcome.summary}
            self.latest = {"round": outcome.summary["rounds_completed"], **known}

    def look(self) -> None:
        """Read what the trial has written since the last look."""
        if self.state not in (State.WAITING, State.RUNNING) or not self.attempts:
            return
        path = self.folder / "metrics.jsonl"
        if path.exists():
            with path.open("rb") as file:
                file.seek(self._read)
                whole, _, _ = file.read().rpartition(b"\n")
            for line in whole.splitlines():
                told = json.loads(line)
                shown = ("round", *(metric.name for metric in MAIN), "epsilon_max")
                self.latest.update({k: told[k] for k in shown if told.get(k) is not None})
            self._read += len(whole) + 1 if whole else 0
            self.state = State.RUNNING
        elif (self.folder / LOG).exists():
            self.state = State.RUNNING


@final
class Progress:
    """Shows the trials: a live table on a terminal, elsewhere a line for every change of state."""

    def __init__(self, trials: Sequence[Trial], stream: Any = None) -> None:
        self._stream = output(stream or sys.stdout)
        self._console = Console(file=self._stream, highlight=False)  # type: ignore[arg-type]
        self._trials, self._live, self._told = trials, None, {}  # type: ignore[var-annotated]
        if self._stream.isatty():
            self._live = Live(console=self._console, get_renderable=self._table, transient=True)

    def __enter__(self) -> "Progress":
        if self._live is not None:
            self._live.start()
        self.update()
        return self

    def __exit__(self, *error: object) -> None:
        self.close()

    def update(self) -> None:
        """Look at every trial and show what is new."""
        for trial in self._trials:
            trial.look()
            row = self._row(trial)
            if self._live is None and self._told.get(trial.number) != row[1]:
                self._told[trial.number] = row[1]
                self._print(" ".join(["trial", *row]))

    def close(self) -> None:
        """Leave the table as it is at the end, every value whole and on one line."""
        if self._live is not None:
            self._live.stop()
        rows = [self._headings(), *(self._row(trial) for trial in self._trials)]
        for line in columns(rows, left=(1, 5)):
            self._print(line)

    def _headings(self) -> list[str]:
        """Return the columns' heads; one of them is the figure that trials are compared by."""
        found = {metric_of(t.latest).title for t in self._trials}
        return [*HEADINGS[:3], found.pop() if len(found) == 1 else "figure", *HEADINGS[3:]]

    def _print(self, line: str) -> None:
        self._console.print(Text(line), soft_wrap=True)

    def _table(self) -> Table:
        table = Table(box=None, padding=(0, 2), header_style="bold")
        for name in self._headings():
            text = name in ("state", "overrides")
            table.add_column(name, justify="left" if text else "right", overflow="fold")
        for trial in self._trials:
            table.add_row(*map(Text, self._row(trial)))
        return table

    def _row(self, trial: Trial) -> list[str]:
        return [self._stream.fit(plain(cell)) for cell in _row(trial)]


def _row(trial: Trial) -> list[str]:
    number = trial.latest.get("round")
    found = trial.latest.get(metric_of(trial.latest).name)
    epsilon = trial.latest.get("epsilon_max")
    again = f" ({trial.attempts})" if trial.attempts > 1 else ""
    return [
        str(trial.number),
        trial.state.value + again,
        "-" if number is None else f"{number}/{trial.settings.rounds}",
        "-" if found is None else f"{found:.4f}",
        "-" if epsilon is None else f"{epsilon:.3f}",
        trial.name,
    ]
