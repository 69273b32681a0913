"""Waits that last: what is waited for is said, in words that are true at that moment."""

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import final

from fedsvd.terminal import complain

FIRST = 20.0  # seconds of silence before the first line; every further silence is twice as long


@final
class Notice:
    """Says on standard error what is waited for, after `FIRST` seconds, then ever less often."""

    def __init__(self) -> None:
        self._silence = FIRST
        self.restart()

    def restart(self) -> None:
        """Begin a new wait: what was waited for is there. Its first line keeps the interval."""
        self._began = time.monotonic()
        self._due = self._began + self._silence

    @property
    def left(self) -> float:
        """Seconds until a line is due."""
        return max(0.0, self._due - time.monotonic())

    def look(self, what: Callable[[], str]) -> None:
        """Say what is waited for, if a line is due; `what` is only called then."""
        if self.left > 0:
            return
        self._silence *= 2
        complain(f"waiting since {time.monotonic() - self._began:.0f} s for {what()}")
        self._due = time.monotonic() + self._silence


@contextmanager
def told(what: Callable[[], str]) -> Iterator[None]:
    """Say what is waited for while the block runs, where the wait is another library's."""
    over, notice = threading.Event(), Notice()

    def watch() -> None:
        while not over.wait(notice.left):
            notice.look(what)

    thread = threading.Thread(target=watch, name="waiting", daemon=True)
    thread.start()
    try:
        yield
    finally:
        over.set()
        thread.join()
