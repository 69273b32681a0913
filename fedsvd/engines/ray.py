"""The Ray engine: clients run in actors of a Ray cluster, each with a model of its own."""

import math
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from typing import Any, final

import ray
from flwr.app import Message, RecordDict

from fedsvd.engines.actor import Answer, AppMaker, ClientActor, pickle_bytes_apart
from fedsvd.engines.base import Engine, error_reply, late
from fedsvd.engines.cluster import connect, room_for
from fedsvd.engines.slices import first_ready, free, value_of
from fedsvd.errors import InputError
from fedsvd.settings import EngineSettings
from fedsvd.waiting import Notice

ATTEMPTS = 3  # of a message whose worker died
STARTUP = 300.0  # seconds that a new worker has to start and build its model, beside a deadline
TOGETHER = 0.02  # seconds of clients' work that are worth a call of their own


@final
class RayGrid(Engine):
    """Deals messages to actors, longest first; a worker that dies is replaced.

    Only workers that are up get messages, so that runs which share a cluster never wait for each
    other's: one with a single worker goes on with that one. Clients whose work takes less than
    `TOGETHER` seconds, as the last calls took, go several to a call. A worker's death costs its
    clients' work, which is done again by others with the same streams: the result has the same bits.
    The content of a round's messages is put into the object store once. A cluster that was running
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
        pickle_bytes_apart()
        self._deadline = deadline
        self._until: dict[Any, float] = {}  # reference: when it is late
        self._proven: set[Any] = set()  # workers that have answered
        self._pace: dict[str, float] = {}  # kind of message: seconds of a client's work
        self._make_app, self._costs, self._settings = make_app, costs, settings
        self._for_clients, self._for_workers = Notice(), Notice()
        self._started = connect(settings.address)
        self._room = room_for(settings)
        self._idle: list[Any] = []
        self._busy: dict[Any, tuple[Any, list[int]]] = {}  # reference: (worker, positions)
        self._starting: dict[Any, Any] = {}  # reference: worker
        if self._room < 1:
            free = {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")}
            self.close()
            raise InputError(
                f"engine: a worker needs {settings.num_cpus:g} CPUs and {settings.num_gpus:g} GPUs "
                f"(engine.num_cpus, engine.num_gpus), and the Ray cluster has {free}"
            )

    def expect(self, messages: int) -> None:
        """Start the workers for so many messages; they come up while the caller does other work."""
        self._start_workers(messages)

    def execute(self, messages: Sequence[Message]) -> list[Message]:
        """Return the replies, whichever worker gave them and in whatever order they came."""
        contents: dict[int, Any] = {}
        self._begin_wait()
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
                taken = self._take(waiting, messages, attempts)
                content = contents[id(messages[taken[0]].content)]
                self._send([messages[i] for i in taken], content, taken)
            ready = first_ready([*self._busy, *self._starting], self._patience())
            if not ready:
                for position in self._kill_late():
                    replies[position] = error_reply(messages[position], late(self._deadline))
                self._tell(messages)
                continue
            self._begin_wait()
            done = ready[0]
            if done in self._starting:
                self._greet(done)
                continue
            worker, positions = self._busy.pop(done)
            self._proven.add(worker)
            try:
                answers, seconds = value_of(done)
                self._idle.append(worker)
                kind = messages[positions[0]].metadata.message_type
                self._pace[kind] = seconds / len(answers)
                for position, answer in zip(positions, answers, strict=True):
                    replies[position] = self._receive(messages[position], answer)
            except (ray.exceptions.RayActorError, ray.exceptions.ObjectLostError) as death:
                for position in positions:
                    if attempts[position] < ATTEMPTS:
                        waiting.append(position)
                    else:
                        replies[position] = error_reply(
                            messages[position],
                            f"its worker died {ATTEMPTS} times: {death}".splitlines()[0],
                        )
            except ray.exceptions.RayTaskError as error:
                self._idle.append(worker)
                if isinstance(error.cause, InputError):
                    raise error.cause from None
                raise
        return [reply for reply in replies if reply is not None]

    def _take(
        self, waiting: list[int], messages: Sequence[Message], attempts: list[int]
    ) -> list[int]:
        """Take from the end of `waiting` the positions that go out in one call.

        More than one only where they carry the same message, none has a deadline or cost a worker
        its life before, and no more than an idle worker's share.
        """
        first = messages[waiting[-1]]
        pace = self._pace.get(first.metadata.message_type, math.inf)
        share = math.ceil(len(waiting) / len(self._idle))
        most = min(share, int(TOGETHER / max(pace, 1e-9))) if self._deadline is None else 1
        taken: list[int] = []
        while waiting and len(taken) < max(1, most):
            message, again = messages[waiting[-1]], attempts[waiting[-1]] > 0
            same = message.content is first.content and (
                message.metadata.message_type == first.metadata.message_type
            )
            if taken and (again or not same):
                break
            taken.append(waiting.pop())
            if again:
                break
        for position in taken:
            attempts[position] += 1
        return taken

    def _patience(self) -> float:
        """Return the seconds until the first busy worker is late; infinity without a deadline."""
        first = min((self._until[r] for r in self._busy), default=math.inf)
        return max(0.0, first - time.monotonic())

    def _begin_wait(self) -> None:
        self._for_clients.restart()
        self._for_workers.restart()

    def _tell(self, messages: Sequence[Message]) -> None:
        """Say what has been waited for for long: clients that work, or workers that start."""
        if not self._busy:
            needs = f"{self._settings.num_cpus:g} CPUs and {self._settings.num_gpus:g} GPUs"
            self._for_workers.look(lambda: f"a Ray worker of {needs} to start; {free()}")
            return
        asked = sorted(
            messages[i].metadata.dst_node_id for _, taken in self._busy.values() for i in taken
        )
        told = ", ".join(map(str, asked))
        self._for_clients.look(lambda: f"the work of clients {told}, on {len(self._busy)} workers")

    def _kill_late(self) -> list[int]:
        """Kill the workers that are late and return the positions of their messages."""
        now = time.monotonic()
        given_up = [r for r in self._busy if self._until[r] <= now]
        positions = []
        for reference in given_up:
            worker, taken = self._busy.pop(reference)
            ray.kill(worker)
            positions.extend(taken)
        return positions

    def _start_workers(self, needed: int) -> None:
        """Start workers up to the room that there is and the messages of the round."""
        options = {"num_cpus": self._settings.num_cpus, "num_gpus": self._settings.num_gpus}
        there = len(self._idle) + len(self._busy) + len(self._starting)
        for _ in range(there, min(self._room, needed)):
            actor = ClientActor.options(**options).remote(  # type: ignore[attr-defined]
                self._make_app,
                self._clients,
                threads_of(self._settings),
                [p for p in sys.path if p],
            )
            self._starting[actor.ready.remote()] = actor

    def _greet(self, reference: Any) -> None:
        """Take a worker that is up among the idle; one that died while it started is forgotten.

        Raises RuntimeError where a worker cannot be made at all.
        """
        worker = self._starting.pop(reference)
        try:
            value_of(reference)
        except ray.exceptions.RayActorError as death:
            if death.actor_init_failed:
                raise RuntimeError(f"a Ray worker cannot start: {death}") from death
            return
        self._idle.append(worker)

    def _send(self, messages: Sequence[Message], content: Any, positions: list[int]) -> None:
        """Let an idle worker answer these messages, which are the same but for their clients."""
        worker, kind = self._idle.pop(), messages[0].metadata.message_type
        clients = [message.metadata.dst_node_id for message in messages]
        calls = [(client, self.context(client).state or None) for client in clients]
        reference = worker.answer.remote(content, kind, calls)
        self._busy[reference] = (worker, positions)
        limit = math.inf  # evaluation has no deadline
        if self._deadline is not None and kind == "train":
            limit = self._deadline + (0.0 if worker in self._proven else STARTUP)
        self._until[reference] = time.monotonic() + limit

    def _receive(self, message: Message, answer: Answer) -> Message:
        content, reason, state = answer
        self.context(message.metadata.dst_node_id).state = RecordDict() if state is None else state
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


def threads_of(settings: EngineSettings) -> int:
    """Return the threads of a worker's PyTorch: as set, or the CPUs that it holds."""
    return settings.threads or max(1, int(settings.num_cpus))


def worker_settings(
    settings: Any, trains: Sequence[str], gradients: str | None = None, keeps: bool = True
) -> Any:
    """Return a run's settings for its workers: what trains is resolved, so that a strategy's module
    need not be importable there, and threads are left to the actor.

    How per-example `gradients` are taken is the server's choice for all; a worker that finds hooks
    wrong where the server found them right refuses. So is whether anything is kept of the blocks
    below the adapted ones.
    """
    training = replace(settings.training, factors="".join(trains))
    if not keeps:
        training = replace(training, cache="off")
    privacy = settings.privacy
    if gradients is not None:
        privacy = replace(privacy, gradients=gradients)
    engine = replace(settings.engine, threads=None)
    return replace(settings, training=training, privacy=privacy, engine=engine)
