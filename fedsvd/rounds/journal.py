"""The journal: what clients are asked for, on disk before they are asked."""

import fcntl
import hashlib
import json
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Any, final

from fedsvd.errors import InputError
from fedsvd.files import append_line, unwritable

NAME = "journal.jsonl"


@dataclass
class Entry:
    """One attempt at a round: who was asked, from what position, and what came of it.

    `steps` is the most that any of them could take; `taken` what they reported, `failed` who was
    left out and why, both None until the replies were in; `cause` what made the software of all fail,
    if it was one thing.
    """

    round: int
    attempt: int
    position: str
    clients: list[int]
    steps: int
    failed: dict[str, str] | None = None
    taken: dict[str, int] | None = None
    cause: str | None = None


@final
@dataclass
class Journal:
    """Every attempt of a run, in a file of JSON lines if it has a folder.

    `asked` is called before messages go out and `replied` before anything is made of the replies;
    both return when the line is on the disk. `open` are the attempts that no checkpoint holds.
    """

    path: Path | None = None
    lines: int = 0
    open: dict[tuple[int, int], Entry] = field(default_factory=dict)
    _file: Any = None

    def asked(self, entry: Entry) -> None:
        """Enter an attempt before its messages go out."""
        self.open[entry.round, entry.attempt] = entry
        told = {k: v for k, v in asdict(entry).items() if k not in ("failed", "taken", "cause")}
        self._write({"kind": "asked", **told})

    def replied(self, entry: Entry, failed: Mapping[int, str], taken: Mapping[int, int]) -> None:
        """Enter what came of an attempt before anything is made of it."""
        entry.failed = {str(k): v for k, v in failed.items()}
        entry.taken = {str(k): v for k, v in taken.items()}
        told: dict[str, Any] = {"round": entry.round, "attempt": entry.attempt}
        if entry.cause is not None:
            told["cause"] = entry.cause
        self._write({"kind": "replied", **told, "failed": entry.failed, "taken": entry.taken})

    def of_round(self, round: int) -> list[Entry]:
        """Return the open attempts at a round, the first one first."""
        return [e for (number, _), e in sorted(self.open.items()) if number == round]

    def reserved(self, after: int) -> dict[int, int]:
        """Return the steps that clients may have taken in open attempts after round `after`."""
        steps: dict[int, int] = {}
        for entry in self.open.values():
            if entry.round > after:
                for client in entry.clients:
                    steps[client] = steps.get(client, 0) + entry.steps
        return steps

    def settle(self, entries: Sequence[Entry]) -> None:
        """Take attempts off the open ones: the ledger holds them now."""
        for entry in entries:
            self.open.pop((entry.round, entry.attempt), None)

    def lock(self) -> None:
        """Keep other processes from running in this folder; InputError if one does already."""
        if self.path is None:
            return
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            self._file = self.path.open("ab")
            fcntl.flock(self._file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            self.close()
            raise InputError(f"{self.path.parent}: another process runs in this folder") from error
        except OSError as error:
            raise unwritable(self.path, error) from error

    def close(self) -> None:
        """Let go of the folder."""
        if self._file is not None:
            self._file.close()
            self._file = None

    def _write(self, told: Mapping[str, Any]) -> None:
        self.lines += 1
        if self.path is not None:
            text = json.dumps({"line": self.lines, **told})
            append_line(self.path, json.dumps({"sha256": _sum(text), "told": text}))

    def read(self, settled: int, still_open: Sequence[Mapping[str, Any]] = ()) -> None:
        """Take the file's attempts after its first `settled` lines as open, beside `still_open`.

        A last line that was torn while it was written is cut off: nothing had been sent yet. Raises
        InputError for any other damage.
        """
        assert self.path is not None
        try:
            data = self.path.read_bytes() if self.path.exists() else b""
        except OSError as error:
            raise InputError(f"{self.path}: cannot be read: {error.strerror}") from error
        whole, _, torn = data.rpartition(b"\n")
        if torn:
            with self.path.open("r+b") as file:
                file.truncate(len(data) - len(torn))
        lines = whole.split(b"\n") if whole else []
        self.open = {(e.round, e.attempt): e for e in (Entry(**told) for told in still_open)}
        if len(lines) < settled:
            raise InputError(
                f"{self.path}: holds {len(lines)} lines; the checkpoint was made after {settled}"
            )
        for number, line in enumerate(lines, start=1):
            try:
                self._take(line, number, number > settled)
            except (ValueError, KeyError, TypeError, RecursionError) as error:
                raise InputError(f"{self.path}: line {number} is damaged") from error
        self.lines = len(lines)

    def _take(self, line: bytes, number: int, is_open: bool) -> None:
        outer = json.loads(line)
        told = json.loads(outer["told"])
        if outer["sha256"] != _sum(outer["told"]) or told.pop("line") != number:
            raise ValueError("another line")
        kind = told.pop("kind")
        key = int(told["round"]), int(told["attempt"])
        if kind == "asked" and is_open:
            self.open[key] = Entry(**told)
        elif kind == "replied" and key in self.open:
            self.open[key].failed, self.open[key].taken = told["failed"], told["taken"]
            self.open[key].cause = told.get("cause")


def _sum(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()
