"""What an engine is: a Flower grid whose nodes are a run's clients."""

import uuid
from abc import ABC, abstractmethod
from collections.abc import Iterable, Mapping, Sequence

from flwr.app import Context, Error, Message, RecordDict
from flwr.app.user_config import UserConfig
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

RUN_ID, SERVER_NODE = 1, 1


class Engine(Grid, ABC):
    """Clients 0..n-1 as nodes of the same ids; an engine decides where they execute.

    Unmodified ServerApps, ClientApps and strategies run on it. `invite` sets the nodes that
    `get_node_ids` shows, which is how a round's participants reach any strategy. Each client's
    context, and in it its state, lives as long as the grid. A client that raises is answered for by
    a message with an error, as Flower does. An engine never changes a result.
    """

    # Whether clients compose their settings themselves, and must be told what was chosen for `auto`.
    composes: bool = False

    def __init__(self, clients: int) -> None:
        claim_identity()
        self._clients = clients
        # Of clients that were asked for; None where clients keep their contexts themselves.
        self._contexts: dict[int, Context] | None = {}
        self._invited: Sequence[int] = range(clients)
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(RUN_ID)

    @abstractmethod
    def execute(self, messages: Sequence[Message]) -> list[Message]:
        """Run every message's client and return the replies, in the order of the messages."""

    def expect(self, messages: int) -> None:
        """Get ready for so many messages at once; the default needs nothing."""

    def close(self) -> None:
        """Give back what the engine holds outside this process; the default holds nothing."""

    def states(self) -> dict[int, RecordDict]:
        """Return what each client keeps in its context; only those that keep anything."""
        if self._contexts is None:
            return {}
        # A context without state is like a new one: of many clients only those that keep anything
        # are looked at in every round.
        self._contexts = {k: c for k, c in sorted(self._contexts.items()) if len(c.state)}
        return {k: c.state for k, c in self._contexts.items()}

    def restore(self, states: Mapping[int, RecordDict]) -> None:
        """Give clients what they kept, as `states` returned it; IndexError for an unknown one."""
        for client, state in states.items() if self._contexts is not None else ():
            self.context(client).state = state

    @property
    def holds_states(self) -> bool:
        """Whether what clients keep is here, and not with their nodes."""
        return self._contexts is not None

    def context(self, client: int) -> Context:
        """Return a client's context, where this process holds it; IndexError for an unknown one."""
        assert self._contexts is not None
        if client not in self._contexts:
            if not 0 <= client < self._clients:
                raise IndexError(f"there is no client {client}")
            self._contexts[client] = new_context(client, self._clients)
        return self._contexts[client]

    def invite(self, clients: Sequence[int]) -> None:
        """Show only these clients to the strategy, until the next call."""
        self._invited = list(clients)

    def set_run(self, run: Run) -> None:
        """Take the run that this grid serves."""
        self._run = run

    @property
    def run(self) -> Run:
        """The run that this grid serves."""
        return self._run

    def create_message(
        self,
        content: RecordDict,
        message_type: str,
        dst_node_id: int,
        group_id: str,
        ttl: float | None = None,
    ) -> Message:
        """Return a new message to a node."""
        return Message(content, dst_node_id, message_type, ttl=ttl, group_id=group_id)

    def get_node_ids(self) -> Iterable[int]:
        """Return the ids of the invited nodes."""
        return list(self._invited)

    def push_messages(self, messages: Iterable[Message]) -> Iterable[str]:
        """Execute the messages and keep the replies; return the messages' ids."""
        given = list(messages)
        for message in given:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
        ids = [message.metadata.message_id for message in given]
        self._replies.update(zip(ids, self.execute(given), strict=True))
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return, once, the replies to the messages of these ids."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Execute the messages and return their replies, in the same order."""
        return self.pull_messages(self.push_messages(messages))


def claim_identity() -> None:
    """Let messages be made in this process: Flower asks who the task is that makes them."""
    TaskIdentity.task_id = RUN_ID
    TaskIdentity.run_id = RUN_ID
    TaskIdentity.node_id = SERVER_NODE


def new_context(client: int, clients: int) -> Context:
    """Return the context that a client starts with."""
    config: UserConfig = {"partition-id": client, "num-partitions": clients}
    return Context(RUN_ID, client, config, RecordDict(), {})


def error_reply(message: Message, reason: str) -> Message:
    """Return the answer for a client that could not give one."""
    return Message(Error(code=1, reason=reason), reply_to=message)


def late(deadline: float | None) -> str:
    """Return the reason for leaving out a client that did not answer in time."""
    return f"no answer within faults.deadline={deadline} s"
