"""The recorder's interface, and the recorder that writes the files of a run folder."""

import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, final

from fedsvd.files import append_line, clean, write_bytes, write_json, write_text
from fedsvd.rounds.record import RoundRecord, Start, Summary


class Recorder(ABC):
    """Shows or stores what happens in a run while it goes.

    `recorder._target_=package.Class` adds one. Further keys of `recorder` are arguments of its
    constructor. An argument called `folder` gets the run folder.
    """

    @abstractmethod
    def start(self, start: Start) -> None:
        """Take the description of the run, before its first round or before it goes on."""

    @abstractmethod
    def round(self, record: RoundRecord) -> None:
        """Take a round that is done; round 0 is the initial state."""

    @abstractmethod
    def finish(self, summary: Summary) -> None:
        """Take the summary after the last round."""

    def halt(self, ledger: Mapping[str, Any]) -> None:  # noqa: B027
        """Take what clients have spent if the run stops early; the default does nothing.

        `ledger` is what privacy.json holds.
        """

    def close(self) -> None:  # noqa: B027
        """Close what is open, however the run ended; it may come after `finish`, and twice."""


@final
class Recorders(Recorder):
    """Several recorders as one, in order."""

    def __init__(self, members: Sequence[Recorder]) -> None:
        self._members = list(members)

    def start(self, start: Start) -> None:
        """Start every member."""
        for member in self._members:
            member.start(start)

    def round(self, record: RoundRecord) -> None:
        """Give the round to every member."""
        for member in self._members:
            member.round(record)

    def halt(self, ledger: Mapping[str, Any]) -> None:
        """Tell every member that the run stops early."""
        for member in self._members:
            member.halt(ledger)

    def finish(self, summary: Summary) -> None:
        """Give the summary to every member."""
        for member in self._members:
            member.finish(summary)

    def close(self) -> None:
        """Close every member, the last one first."""
        for member in reversed(self._members):
            member.close()


@final
class FileRecorder(Recorder):
    """Writes config.yaml, metrics.jsonl, privacy.json, report.html and summary.json of a run folder.

    `config` is the resolved configuration. `kept` are the bytes of metrics.jsonl that the run goes on
    from, None for a new run.
    """

    def __init__(self, folder: Path, config: str, kept: int | None = None) -> None:
        self._folder, self._config, self._kept = folder, config, kept
        self._metrics = folder / "metrics.jsonl"
        self._start: Start | None = None
        self._texts: dict[int, tuple[Mapping[str, Any], str]] = {}  # of clients in privacy.json

    def start(self, start: Start) -> None:
        """Write the resolved configuration and the privacy plan; cut off rounds to be done again."""
        self._start = start
        write_text(self._folder / "config.yaml", self._config)
        self._write(start.ledger)
        if self._kept is not None:
            write_bytes(self._metrics, self._metrics.read_bytes()[: self._kept])
        elif self._metrics.exists():  # of a run that stopped before its first checkpoint
            write_bytes(self._metrics, b"")

    def round(self, record: RoundRecord) -> None:
        """Append the round's line and rewrite the ledger."""
        append_line(self._metrics, json.dumps(clean(record.metrics)))
        self._write(record.ledger)

    def halt(self, ledger: Mapping[str, Any]) -> None:
        """Rewrite the ledger."""
        self._write(ledger)

    def finish(self, summary: Summary) -> None:
        """Write the ledger, the report and, last, the summary."""
        from fedsvd.recorders.report import write_report  # Matplotlib is slow to import

        assert self._start is not None
        self._write(summary.ledger)
        write_report(self._folder / "report.html", self._start, summary, self._config)
        write_json(self._folder / "summary.json", summary.values)

    def _write(self, ledger: Mapping[str, Any]) -> None:
        """Write privacy.json as `write_json` does; lines of unchanged clients are not made anew."""
        whole = json.dumps(clean({**ledger, "clients": []}), indent=2)
        known = self._texts.get
        each = ",\n    ".join(
            held[1] if (held := known(at)) and held[0] is told else self._text(at, told)
            for at, told in enumerate(ledger["clients"])
        )
        # No text of JSON has this in it: its quotation marks would be escaped.
        if each:
            whole = whole.replace('"clients": []', f'"clients": [\n    {each}\n  ]', 1)
        write_text(self._folder / "privacy.json", whole + "\n")

    def _text(self, at: int, told: Mapping[str, Any]) -> str:
        text = json.dumps(clean(told), indent=2).replace("\n", "\n    ")
        self._texts[at] = (told, text)
        return text
