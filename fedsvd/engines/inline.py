"""The inline engine: a Flower grid that runs the ClientApp in this process."""

import traceback
import uuid
from collections.abc import Iterable, Sequence
from typing import final

from flwr.app import Context, Error, Message, RecordDict
from flwr.clientapp import ClientApp
from flwr.serverapp import Grid
from flwr.supercore.run import Run
from flwr.supercore.task_identity import TaskIdentity

from fedsvd.errors import InputError

RUN_ID, SERVER_NODE = 1, 1


@final
class InlineGrid(Grid):
    """Clients 0..n-1 as nodes of the same ids, called one after another in the order of messages.

    Unmodified ServerApps, ClientApps and strategies run on it. `invite` sets the nodes that
    `get_node_ids` shows, which is how a round's participants reach any strategy. Each client's
    context, and in it its state, lives as long as the grid. A client that raises is answered for by
    a message with an error, as Flower does.
    """

    def __init__(self, client_app: ClientApp, clients: int) -> None:
        TaskIdentity.task_id = RUN_ID
        TaskIdentity.run_id = RUN_ID
        TaskIdentity.node_id = SERVER_NODE
        self._app = client_app
        self._contexts = [
            Context(RUN_ID, k, {"partition-id": k, "num-partitions": clients}, RecordDict(), {})
            for k in range(clients)
        ]
        self._invited: Sequence[int] = range(clients)
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(RUN_ID)

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
        ids = []
        for message in messages:
            message.metadata.__dict__["_message_id"] = uuid.uuid4().hex
            reply = self._execute(message)
            self._replies[message.metadata.message_id] = reply
            ids.append(message.metadata.message_id)
        return ids

    def pull_messages(self, message_ids: Iterable[str]) -> Iterable[Message]:
        """Return, once, the replies to the messages of these ids."""
        return [self._replies.pop(i) for i in message_ids if i in self._replies]

    def send_and_receive(
        self, messages: Iterable[Message], *, timeout: float | None = None
    ) -> Iterable[Message]:
        """Execute the messages and return their replies, in the same order."""
        return self.pull_messages(self.push_messages(messages))

    def _execute(self, message: Message) -> Message:
        node = message.metadata.dst_node_id
        try:
            return self._app(message, self._contexts[node])
        except InputError:
            raise
        except Exception as error:  # whatever a client's code raises is that client's failure
            reason = "".join(traceback.format_exception_only(error)).strip()
            return Message(Error(code=1, reason=reason), reply_to=message)
