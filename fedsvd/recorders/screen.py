"""What the user sees: a header, live progress, a summary."""

import shutil
import sys
import time
from pathlib import Path
from typing import Any, final

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn
from rich.text import Text

from fedsvd.recorders.lines import clients, clock, ending, header, round_line, trouble
from fedsvd.recorders.recorder import Recorder
from fedsvd.rounds.record import RoundRecord, Start, Summary
from fedsvd.terminal import folded, note, output

WIDTH = 80  # columns where no terminal says how many it has


@final
class Screen(Recorder):
    """Prints a run as plain lines, on a terminal with a live bar below them.

    Every text is printed as it is: nothing in it is markup, nothing is cut, and nothing that is
    wrong with the stream ends the run (see fedsvd.terminal).
    """

    def __init__(self, folder: Path, stream: Any = None) -> None:
        self._stream = output(stream or sys.stdout)
        self._folder = folder
        self._live = self._stream.isatty()
        # In a notebook rich would go round the stream, a box for every line.
        self._console = Console(file=self._stream, highlight=False, force_jupyter=False)  # type: ignore[arg-type]
        self._progress: Progress | None = None
        self._began = time.perf_counter()

    def start(self, start: Start) -> None:
        """Print the header and start the bar."""
        width = self._console.width if self._live else shutil.get_terminal_size((WIDTH, 24)).columns
        for lines in (header(start), clients(start, self._stream, width)):
            for line in lines:
                self._print(line)
            self._print()
        self._began = time.perf_counter()
        if self._live:
            self._progress = Progress(
                TextColumn("round", markup=False),
                MofNCompleteColumn(),
                BarColumn(),
                TimeRemainingColumn(),
                console=self._console,
            )
            self._task = self._progress.add_task("", total=start.rounds)
            self._progress.start()

    def round(self, record: RoundRecord) -> None:
        """Print the round's line and move the bar."""
        number, total = record.round, record.rounds
        left = ""
        if self._progress is not None:
            self._progress.update(self._task, completed=number)
        elif 0 < number < total:
            seconds = (time.perf_counter() - self._began) / number * (total - number)
            left = f"  left {clock(seconds)}"
        self._print(
            f"round {number:>{len(str(total))}}/{total}  {round_line(record.metrics)}{left}"
        )
        for line in trouble(record.metrics):
            self._print(line, "yellow")

    def finish(self, summary: Summary) -> None:
        """Stop the bar and print the summary."""
        self.close()
        self._print()
        for line in ending(summary.values, self._folder):
            self._print(line)

    def close(self) -> None:
        """Stop the live bar, if there is one."""
        if self._progress is not None:
            self._progress.stop()
            self._progress = None

    def _print(self, line: str = "", style: str = "") -> None:
        note(line)
        text = self._stream.fit(line)
        # A terminal breaks a long line within a word; a file keeps it whole for who searches in it.
        for part in folded(text, self._console.width) if self._live else [text]:
            self._console.print(Text(part, style), soft_wrap=True)
