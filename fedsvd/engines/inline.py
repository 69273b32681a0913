"""The inline engine: clients run in this process, one after another."""

import signal
import threading
import time
import traceback
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

from flwr.app import Message
from flwr.clientapp import ClientApp

from fedsvd.engines.base import Engine, error_reply, late
from fedsvd.errors import InputError
from fedsvd.records import FAILED, report_of


class DeadlinePassed(Exception):
    """A client's deadline passed while its code ran."""


@final
class InlineGrid(Engine):
    """Calls an unmodified ClientApp for each message, in the messages' order.

    `deadline`: seconds that a client has. A timer then interrupts its Python code; it works only in
    the main thread of a POSIX process, and a client that hangs within native code is not
    interrupted. Where there is no such timer, a reply that comes late is left out.
    """

    def __init__(self, client_app: ClientApp, clients: int, deadline: float | None = None) -> None:
        super().__init__(clients)
        self._app, self._deadline = client_app, deadline

    def execute(self, messages: Sequence[Message]) -> list[Message]:
        """Return the ClientApp's replies."""
        return [self._answer(message) for message in messages]

    def _answer(self, message: Message) -> Message:
        began = time.monotonic()
        limit = self._deadline if message.metadata.message_type == "train" else None
        try:
            with _timer(limit):
                reply = self._app(message, self.context(message.metadata.dst_node_id))
        except InputError:
            raise
        except DeadlinePassed:
            return error_reply(message, late(limit))
        except Exception as error:  # whatever a client's code raises is that client's failure
            return error_reply(message, "".join(traceback.format_exception_only(error)).strip())
        in_time = limit is None or time.monotonic() - began <= limit
        if in_time or FAILED in report_of(reply):  # interrupted, it says how far it came
            return reply
        return error_reply(message, late(limit))


@contextmanager
def _timer(seconds: float | None) -> Iterator[None]:
    """Raise DeadlinePassed within the block after `seconds`; without a timer here, do nothing."""
    if seconds is None or threading.current_thread() is not threading.main_thread():
        yield
        return

    def ring(signum: int, frame: Any) -> None:
        raise DeadlinePassed

    before = signal.signal(signal.SIGALRM, ring)
    signal.setitimer(signal.ITIMER_REAL, seconds)
    try:
        yield
    finally:
        signal.setitimer(signal.ITIMER_REAL, 0)
        signal.signal(signal.SIGALRM, before)
