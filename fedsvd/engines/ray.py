"""The Ray engine: clients run in actors of a Ray cluster, each with a model of its own."""

import logging
import math
import os
import signal
import socket
import sys
import threading
import time
import traceback
import warnings
from collections.abc import Callable, Sequence
from dataclasses import replace
from typing import Any, final

import ray
from flwr.app import Context, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsvd.engines.base import Engine, claim_identity, error_reply, late
from fedsvd.errors import InputError
from fedsvd.settings import EngineSettings

ATTEMPTS = 3  # of a message whose worker died
STARTUP = 300.0  # seconds that a new worker has to start and build its model, beside a deadline

# What makes the ClientApp in a worker's process.
AppMaker = Callable[[], ClientApp]


@ray.remote(max_restarts=0)
class ClientActor:
    """A worker process: one ClientApp, whose model stays from round to round."""

    def __init__(self, make_app: AppMaker, threads: int, paths: list[str]) -> None:
        import torch

        sys.path.extend(p for p in paths if p not in sys.path)
        torch.set_num_threads(threads)
        claim_identity()
        self._app = make_app()

    def ready(self) -> None:
        """Return once the process is up."""

    def answer(
        self, content: RecordDict, kind: str, client: int, context: Context
    ) -> tuple[RecordDict | None, str, RecordDict]:
        """Return the reply's content, or None and a reason; and the client's state after it."""
        try:
            reply = self._app(Message(content, client, kind), context)
        except InputError:
            raise
        except Exception as error:  # whatever a client's code raises is that client's failure
            reason = "".join(traceback.format_exception_only(error)).strip()
            return None, reason, context.state
        if reply.has_error():
            return None, reply.error.reason or "no reason given", context.state
        return reply.content, "", context.state


@final
class RayGrid(Engine):
    """Deals messages to actors, longest first; a worker that dies is replaced.

    Only workers that are up get messages, so that runs which share a cluster never wait for each
    other's: one with a single worker goes on with that one. A worker's death costs its client's
    work, which is done again by another with the same streams: the result has the same bits. The
    content of a round's messages is put into the object store once. A cluster that was running
    before is joined and left as it was.

    `costs[k]` is what client k's work weighs, in any unit. `deadline`: seconds that a client has from
    when its message goes to a worker, and `STARTUP` more with a worker that has not answered before;
    then the worker is killed and replaced. Raises InputError if no worker fits.
    """

    def __init__(
        self,
        make_app: AppMaker,
        clients: int,
        settings: EngineSettings,
        costs: Sequence[float],
        deadline: float | None = None,
    ) -> None:
        super().__init__(clients)
        self._deadline = deadline
        self._until: dict[Any, float] = {}  # reference: when it is late
        self._proven: set[Any] = set()  # workers that have answered
        self._make_app, self._costs, self._settings = make_app, costs, settings
        self._started = connect(settings.address)
        self._room = room_for(settings)
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, int]] = {}  # reference: (worker, position in the round)
        self._starting: dict[Any, Any] = {}  # reference: worker
        if self._room < 1:
            free = {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")}
            self.close()
            raise InputError(
                f"engine: a worker needs {settings.num_cpus:g} CPUs and {settings.num_gpus:g} GPUs "
                f"(engine.num_cpus, engine.num_gpus), and the Ray cluster has {free}"
            )

    def execute(self, messages: Sequence[Message]) -> list[Message]:
        """Return the replies, whichever worker gave them and in whatever order they came."""
        contents: dict[int, Any] = {}
        for message in messages:  # messages of a round share their content: one object for all
            if id(message.content) not in contents:
                contents[id(message.content)] = ray.put(message.content)
        waiting = sorted(
            range(len(messages)), key=lambda i: self._costs[messages[i].metadata.dst_node_id]
        )
        replies: list[Message | None] = [None] * len(messages)
        attempts = [0] * len(messages)
        while waiting or self._busy:
            self._start_workers(len(messages))
            while waiting and self._idle:
                position = waiting.pop()
                attempts[position] += 1
                self._send(messages[position], contents[id(messages[position].content)], position)
            waited = [*self._busy, *self._starting]
            ready, _ = ray.wait(waited, timeout=self._patience())
            if not ready:
                for position in self._kill_late():
                    replies[position] = error_reply(messages[position], late(self._deadline))
                continue
            done = ready[0]
            if done in self._starting:
                self._greet(done)
                continue
            worker, position = self._busy.pop(done)
            message = messages[position]
            self._proven.add(worker)
            try:
                replies[position] = self._receive(message, *ray.get(done))
                self._idle.append(worker)
            except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as death:
                if attempts[position] < ATTEMPTS:
                    waiting.append(position)
                else:
                    replies[position] = error_reply(
                        message, f"its worker died {ATTEMPTS} times: {death}".splitlines()[0]
                    )
            except ray.exceptions.RayTaskError as error:
                self._idle.append(worker)
                if isinstance(error.cause, InputError):
                    raise error.cause from None
                raise
        return [reply for reply in replies if reply is not None]

    def _patience(self) -> float | None:
        """Return the seconds until the first busy worker is late; None without a deadline."""
        first = min((self._until[r] for r in self._busy), default=math.inf)
        return None if first == math.inf else max(0.0, first - time.monotonic())

    def _kill_late(self) -> list[int]:
        """Kill the workers that are late and return the positions of their messages."""
        now = time.monotonic()
        given_up = [r for r in self._busy if self._until[r] <= now]
        positions = []
        for reference in given_up:
            worker, position = self._busy.pop(reference)
            ray.kill(worker)
            positions.append(position)
        return positions

    def _start_workers(self, needed: int) -> None:
        """Start workers up to the room that there is and the messages of the round."""
        options = {"num_cpus": self._settings.num_cpus, "num_gpus": self._settings.num_gpus}
        there = len(self._idle) + len(self._busy) + len(self._starting)
        for _ in range(there, min(self._room, needed)):
            actor = ClientActor.options(**options).remote(  # type: ignore[attr-defined]
                self._make_app, threads_of(self._settings), [p for p in sys.path if p]
            )
            self._starting[actor.ready.remote()] = actor

    def _greet(self, reference: Any) -> None:
        """Take a worker that is up among the idle; one that died while it started is forgotten.

        Raises RuntimeError where a worker cannot be made at all.
        """
        worker = self._starting.pop(reference)
        try:
            ray.get(reference)
        except ray.exceptions.RayActorError as death:
            if death.actor_init_failed:
                raise RuntimeError(f"a Ray worker cannot start: {death}") from death
            return
        self._idle.append(worker)

    def _send(self, message: Message, content: Any, position: int) -> None:
        worker, client = self._idle.pop(), message.metadata.dst_node_id
        reference = worker.answer.remote(
            content, message.metadata.message_type, client, self.context(client)
        )
        self._busy[reference] = (worker, position)
        limit = math.inf  # evaluation has no deadline
        if self._deadline is not None and message.metadata.message_type == "train":
            limit = self._deadline + (0.0 if worker in self._proven else STARTUP)
        self._until[reference] = time.monotonic() + limit

    def _receive(
        self, message: Message, content: RecordDict | None, reason: str, state: RecordDict
    ) -> Message:
        self.context(message.metadata.dst_node_id).state = state
        if content is None:
            return error_reply(message, reason)
        return Message(content, reply_to=message)

    def close(self) -> None:
        """Stop the workers, and Ray if it was started here."""
        if not ray.is_initialized():
            return
        working = [w for w, _ in self._busy.values()]
        for worker in [*self._idle, *working, *self._starting.values()]:
            ray.kill(worker)
        self._idle, self._busy, self._starting = [], {}, {}
        if self._started:
            ray.shutdown()


def connect(address: str | None, key: str = "engine.address") -> bool:
    """Join the cluster at `address` (default: RAY_ADDRESS) or start one; return whether started.

    Within a Ray task or actor the surrounding cluster is used. Raises InputError, with `key` for the
    address, if nothing answers.
    """
    if ray.is_initialized():
        return False
    address = address or os.environ.get("RAY_ADDRESS")
    address = None if address == "local" else address
    on_terminate = signal.getsignal(signal.SIGTERM)  # Ray would put its own in the place of ours
    try:
        _probe(address)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", FutureWarning)  # on devices of workers without a GPU
            ray.init(
                address=address or "local", log_to_driver=False, logging_level=logging.ERROR,
                configure_logging=False, include_dashboard=False if not address else None,
            )  # fmt: skip
    except (OSError, ValueError, RuntimeError) as error:
        first = str(error).strip().splitlines()[0]
        raise InputError(f"{key}: {address!r} cannot be joined: {first}") from error
    if threading.current_thread() is threading.main_thread():
        signal.signal(signal.SIGTERM, on_terminate)
    return not address


def _probe(address: str | None) -> None:
    """Raise OSError if nothing listens at host:port; Ray itself would wait for minutes."""
    host, _, port = (address or "").rpartition(":")
    if host and "/" not in host and port.isdigit():
        socket.create_connection((host.strip("[]"), int(port)), timeout=5).close()


def room_for(settings: EngineSettings) -> int:
    """Return how many workers the cluster's nodes hold, at most `engine.workers`."""
    room = 0
    for node in ray.nodes():
        if node["Alive"]:
            has = node["Resources"]
            fits = [
                int(has.get(kind, 0) / need)
                for kind, need in (("CPU", settings.num_cpus), ("GPU", settings.num_gpus))
                if need > 0
            ]
            room += min(fits) if fits else 1
    return room if settings.workers is None else min(room, settings.workers)


def threads_of(settings: EngineSettings) -> int:
    """Return the threads of a worker's PyTorch: as set, or the CPUs that it holds."""
    return settings.threads or max(1, int(settings.num_cpus))


def worker_settings(settings: Any, trains: Sequence[str]) -> Any:
    """Return a run's settings for its workers: what trains is resolved, so that a strategy's module
    need not be importable there, and threads are left to the actor.
    """
    training = replace(settings.training, factors="".join(trains))
    return replace(settings, training=training, engine=replace(settings.engine, threads=None))
