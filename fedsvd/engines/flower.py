"""The grid of a Flower runtime as an engine: clients are its nodes, found by their partition id."""

import time
from collections.abc import Sequence
from typing import final

from flwr.app import ConfigRecord, Message, MessageType, RecordDict
from flwr.serverapp import Grid

from fedsvd.engines.base import RUN_ID, Engine, Run, error_reply
from fedsvd.errors import InputError
from fedsvd.records import CONFIG
from fedsvd.waiting import told

CLIENT = "client"  # in the answer to a query: which client the node is
NODES = "nodes"  # and, in a simulation, how many there are
POLL = 0.2  # seconds between looks at which nodes there are


@final
class FlowerGrid(Engine):
    """Passes messages for clients 0..n-1 to the nodes that are those clients, and answers back.

    Flower's node ids are random; strategies, streams and ledger go by the client. The nodes keep
    their own contexts. Waits up to `patience` seconds for the nodes to be there, then raises
    InputError; a node that leaves a message unanswered for `timeout` seconds has failed in that
    round.
    """

    def __init__(
        self, grid: Grid, clients: int, patience: float = 300.0, timeout: float | None = None,
        composes: bool = False,
    ) -> None:  # fmt: skip
        # Neither contexts nor an identity of the process: the runtime has its own.
        self._grid, self._timeout, self.composes = grid, timeout, composes
        self._contexts = None
        self._invited: Sequence[int] = range(clients)
        self._replies: dict[str, Message] = {}
        self._run = Run.create_empty(RUN_ID)
        self._nodes = find_clients(grid, clients, patience)

    def execute(self, messages: Sequence[Message]) -> list[Message]:
        """Return the nodes' answers."""
        clients = {self._nodes[m.metadata.dst_node_id]: m for m in messages}
        sent = [Message(m.content, node, m.metadata.message_type) for node, m in clients.items()]
        asked = ", ".join(str(m.metadata.dst_node_id) for m in messages)
        with told(lambda: f"the nodes of clients {asked}"):
            found = list(self._grid.send_and_receive(sent, timeout=self._timeout))
        answers = {a.metadata.src_node_id: a for a in found}
        return [_answer(message, answers.get(node)) for node, message in clients.items()]


def _answer(message: Message, answer: Message | None) -> Message:
    if answer is None:
        return error_reply(message, "did not answer in time")
    if answer.has_error():
        reason = (answer.error.reason or "").strip(" \n'\">") or "no reason given"
        return error_reply(message, reason.splitlines()[-1][:300])
    return Message(answer.content, reply_to=message)


def simulated_nodes(grid: Grid, patience: float) -> int | None:
    """Return how many nodes Flower's simulation has, as one says; None in a deployment.

    Waits up to `patience` seconds for the first node, then returns None too.
    """
    deadline = time.monotonic() + patience
    while not (nodes := sorted(grid.get_node_ids())) and time.monotonic() < deadline:
        time.sleep(POLL)
    query = RecordDict({CONFIG: ConfigRecord({})})
    messages = [Message(query, node, MessageType.QUERY) for node in nodes[:1]]
    for answer in grid.send_and_receive(messages, timeout=patience) if messages else []:
        if not answer.has_error():
            found = answer.content.config_records[CONFIG].get(NODES)
            return None if found is None else int(found)  # type: ignore[arg-type]
    return None


def find_clients(grid: Grid, clients: int, patience: float) -> dict[int, int]:
    """Return the node of each client, asking every node which one it is."""
    asked: dict[int, int] = {}  # node: client
    with told(lambda: f"the nodes of {clients} clients; {len(asked)} are there"):
        return _find(grid, clients, patience, asked)


def _find(grid: Grid, clients: int, patience: float, asked: dict[int, int]) -> dict[int, int]:
    """Do what `find_clients` does, and enter into `asked` which client each node is."""
    deadline = time.monotonic() + patience
    while True:
        new = sorted(set(grid.get_node_ids()) - asked.keys())
        query = RecordDict({CONFIG: ConfigRecord({})})
        messages = [Message(query, node, MessageType.QUERY) for node in new]
        left = max(1.0, deadline - time.monotonic())
        for answer in grid.send_and_receive(messages, timeout=left) if messages else []:
            if not answer.has_error():
                client = answer.content.config_records[CONFIG][CLIENT]
                asked[answer.metadata.src_node_id] = int(client)  # type: ignore[arg-type]
        nodes = {client: node for node, client in asked.items()}
        if len(nodes) < len(asked):
            raise InputError("the nodes' partition-id: two nodes have the same one")
        missing = sorted(set(range(clients)) - nodes.keys())
        if not missing:
            return {k: nodes[k] for k in range(clients)}
        if time.monotonic() > deadline:
            raise InputError(
                f"clients.number={clients}: no node has partition-id {missing[0]}; "
                f"{len(nodes)} nodes are there"
            )
        time.sleep(POLL)
