"""A recorder behind the gate."""

from collections.abc import Mapping
from typing import Any, final

from fedsvd.recorders.recorder import Recorder
from fedsvd.recorders.view import View
from fedsvd.rounds.record import RoundRecord, Start, Summary


@final
class Public(Recorder):
    """Gives another recorder what may be shown, and nothing else."""

    def __init__(self, inner: Recorder) -> None:
        self._inner = inner
        self._view: View | None = None

    def start(self, start: Start) -> None:
        """Give the start, without what is private."""
        self._view = View.of(start.settings, start.plan)
        self._inner.start(self._view.start(start))

    def round(self, record: RoundRecord) -> None:
        """Give the round, without what is private."""
        assert self._view is not None
        self._inner.round(self._view.round(record))

    def halt(self, ledger: Mapping[str, Any]) -> None:
        """Give what was spent, without what is private."""
        assert self._view is not None
        self._inner.halt(self._view.ledger(ledger))

    def finish(self, summary: Summary) -> None:
        """Give the summary, without what is private."""
        assert self._view is not None
        self._inner.finish(self._view.summary(summary))

    def close(self) -> None:
        """Close it."""
        self._inner.close()
