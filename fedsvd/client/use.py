"""Who trains on a process's model, and in what order it is left."""

import threading
from dataclasses import dataclass, field
from typing import Protocol, final


class Mendable(Protocol):
    """What is used by one client after another."""

    def mend(self) -> None:
        """Put everything in order that a client may leave otherwise."""


@dataclass
class Use:
    """Whether everybody before left the model as it should be, and who is at it.

    `kinds`: which factors are to train, as was asked for from outside a client's training; None:
    nobody has asked.
    """

    clean: bool = True
    kinds: tuple[str, ...] | None = None
    threads: set[threading.Thread] = field(default_factory=set)


@final
class Alone:
    """A block in which one client has the model to itself, as it was left by none before.

    An exception can come anywhere, an asynchronous one (a deadline) also while things are put in
    order. So it is noted before that they may not be, and whoever comes next looks there first.
    `__enter__` raises RuntimeError while another thread is within: it may be one that was given up,
    and two clients' gradients must never meet. It is a class, as a generator that is interrupted
    would be finished whenever the garbage collector comes by.
    """

    def __init__(self, use: Use, model: Mendable) -> None:
        self._use, self._model = use, model

    def __enter__(self) -> "Alone":
        me = threading.current_thread()
        self._use.threads.add(me)  # before looking: of two that come at once both may be refused
        if any(t is not me and t.is_alive() for t in tuple(self._use.threads)):
            self._use.threads.discard(me)
            raise RuntimeError("another client is training on this model")
        if not self._use.clean:
            self._model.mend()
        self._use.clean = False
        return self

    def done(self) -> None:
        """Say that all has been put in order."""
        self._use.clean = True

    def __exit__(self, *_: object) -> None:
        try:
            if not self._use.clean:
                self._model.mend()
        finally:
            self._use.threads.discard(threading.current_thread())
