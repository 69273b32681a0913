"""The process of a Ray worker: one ClientApp, whose model stays from round to round."""

import copyreg
import pickle
import sys
import time
import traceback
from collections.abc import Callable, Sequence
from typing import Any

import ray
from flwr.app import Array, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsvd.engines.base import claim_identity, new_context
from fedsvd.errors import InputError

# What makes the ClientApp in a worker's process.
AppMaker = Callable[[], ClientApp]

# A client, and what it keeps from round to round, if anything.
Call = tuple[int, RecordDict | None]

# A reply's content, or None and a reason; and what the client keeps now.
Answer = tuple[RecordDict | None, str, RecordDict | None]


def pickle_bytes_apart() -> None:
    """Let this process pickle arrays with their bytes out of band, which Ray copies once.

    Within the pickle they would be copied when it is written, when it is stored, and when it is read.
    """
    copyreg.pickle(Array, _apart)


def _apart(array: Array) -> tuple[Any, tuple[Any, ...]]:
    data = pickle.PickleBuffer(array.data)
    return _together, (array.dtype, array.shape, array.stype, data)


def _together(dtype: str, shape: tuple[int, ...], stype: str, data: Any) -> Array:
    return Array(dtype=dtype, shape=shape, stype=stype, data=bytes(data))


@ray.remote(max_restarts=0)
class ClientActor:
    """Answers for one client after another of `clients`."""

    def __init__(
        self, make_app: AppMaker, clients: int, threads: int, paths: Sequence[str]
    ) -> None:
        import torch

        sys.path.extend(p for p in paths if p not in sys.path)
        torch.set_num_threads(threads)
        claim_identity()
        pickle_bytes_apart()
        self._app, self._clients = make_app(), clients

    def ready(self) -> None:
        """Return once the process is up."""

    def answer(
        self, content: RecordDict, kind: str, calls: Sequence[Call]
    ) -> tuple[list[Answer], float]:
        """Return each client's answer to the same message, and the seconds that all took."""
        began = time.perf_counter()
        return [self._one(content, kind, *call) for call in calls], time.perf_counter() - began

    def _one(self, content: RecordDict, kind: str, client: int, kept: RecordDict | None) -> Answer:
        context = new_context(client, self._clients)
        if kept is not None:
            context.state = kept
        try:
            reply = self._app(Message(content, client, kind), context)
        except InputError:
            raise
        except Exception as error:  # whatever a client's code raises is that client's failure
            reason = "".join(traceback.format_exception_only(error)).strip()
            return None, reason, context.state or None
        if reply.has_error():
            return None, reply.error.reason or "no reason given", context.state or None
        return reply.content, "", context.state or None
