"""Ctrl-C and SIGTERM: the first finishes the round, a second one stops at once."""

import os
import signal
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from fedsvd.terminal import complain

NAMES = {signal.SIGINT: "interrupted", signal.SIGTERM: "terminated"}


class Interrupted(BaseException):
    """A run was interrupted; `status` is the exit status, 130 or 143."""

    def __init__(self, signum: int, message: str = "") -> None:
        super().__init__(message)
        self.status = 128 + signum


class _Asked:
    """The signals that came, whether rounds are under way, and how many blocks hold signals back."""

    count = 0
    signum = 0
    training = False
    held = 0


@contextmanager
def listening() -> Iterator[None]:
    """Take SIGINT and SIGTERM within the block; does nothing outside the main thread."""
    _Asked.count, _Asked.training, _Asked.held = 0, False, 0
    if threading.current_thread() is not threading.main_thread():
        yield
        return
    before = {signum: signal.signal(signum, _take) for signum in NAMES}
    try:
        yield
    except SystemError as error:  # how compiled code (Ray's) tells of a handler that raised in it
        if not _Asked.count:
            raise
        raise Interrupted(_Asked.signum, NAMES[signal.Signals(_Asked.signum)]) from error
    finally:
        _Asked.count = 0
        for signum, handler in before.items():
            signal.signal(signum, handler)


def training(active: bool) -> None:
    """Say whether rounds are under way, which a first signal lets finish."""
    _Asked.training = active


def requested() -> int | None:
    """Return the signal that asked this run to stop, or None."""
    return _Asked.signum if _Asked.count else None


@contextmanager
def held() -> Iterator[None]:
    """Note signals within the block and act on them at its end.

    For short waits in compiled code, which swallows what a handler raises: with a handler that
    returns, it goes on waiting, and the end of the block raises Interrupted where that is due.
    """
    _Asked.held += 1
    try:
        yield
    finally:
        _Asked.held -= 1
    look()


def look() -> None:
    """Raise Interrupted if a signal asked to stop at once."""
    if _Asked.held == 0 and _Asked.count > (1 if _Asked.training else 0):
        raise Interrupted(_Asked.signum, NAMES[signal.Signals(_Asked.signum)])


def _take(signum: int, frame: Any) -> None:
    _Asked.count += 1
    _Asked.signum = signum
    if _Asked.count > 2:
        os._exit(128 + signum)
    if _Asked.count == 1 and _Asked.training:
        name = NAMES[signal.Signals(signum)]
        complain(f"{name}: finishing the round; once more stops at once")
    look()
