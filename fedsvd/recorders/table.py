"""rounds.csv: a line a round, for spreadsheets and data frames."""

import csv
import io
from pathlib import Path
from typing import final

from fedsvd.files import write_text
from fedsvd.recorders.recorder import Recorder
from fedsvd.recorders.scalars import scalars
from fedsvd.rounds.record import RoundRecord, Start, Summary


@final
class CsvRecorder(Recorder):
    """Writes rounds.csv of the run folder anew after every round; a column is empty without a value.

    A run that goes on keeps the rounds before.
    """

    def __init__(self, folder: Path, resumed: bool = False) -> None:
        self._path = folder / "rounds.csv"
        self._rows: dict[int, dict[str, float | str]] = {}
        if resumed and self._path.exists():
            with self._path.open(encoding="utf-8", newline="") as file:
                rows = [{k: v for k, v in row.items() if v} for row in csv.DictReader(file)]
            self._rows = {int(row["round"]): dict(row) for row in rows}

    def start(self, start: Start) -> None:
        """Nothing to write yet."""

    def round(self, record: RoundRecord) -> None:
        """Write the round, in the place of it and of those after it, if they were there."""
        self._rows = {k: row for k, row in self._rows.items() if k < record.round}
        self._rows[record.round] = {"round": record.round, **scalars(record.metrics)}
        names = list(dict.fromkeys(name for row in self._rows.values() for name in row))
        out = io.StringIO()
        writer = csv.DictWriter(out, names, lineterminator="\n")
        writer.writeheader()
        writer.writerows(self._rows.values())
        write_text(self._path, out.getvalue())

    def finish(self, summary: Summary) -> None:
        """Nothing to add: summary.json has the rest."""
