"""The engine over a Flower runtime: nodes with ids of their own, found by the client they are."""

import time

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, ConfigRecord, Context, Message, RecordDict
from flwr.serverapp import Grid

from fedsvd import waiting
from fedsvd.engines.base import claim_identity
from fedsvd.engines.flower import CLIENT, FlowerGrid
from fedsvd.errors import InputError
from fedsvd.records import CONFIG
from tests.engines.apps import adding_app


class Runtime(Grid):
    """Three nodes of Flower's kind of ids; the last appears late, one may be deaf to training."""

    set_run = create_message = push_messages = pull_messages = run = None

    def __init__(self, deaf=None, partitions=None):
        claim_identity()
        self.looks, self.deaf, self.nodes = 0, deaf, partitions or {901: 1, 77: 2, 5003: 0}
        self.app = adding_app(fail=2)

    def get_node_ids(self):
        self.looks += 1
        return list(self.nodes) if self.looks > 1 else list(self.nodes)[:-1]

    def send_and_receive(self, messages, *, timeout=None):
        for message in reversed(list(messages)):
            node = message.metadata.dst_node_id
            context = Context(1, node, {"partition-id": self.nodes[node]}, RecordDict(), {})
            if message.metadata.message_type == "query":
                told = RecordDict({CONFIG: ConfigRecord({CLIENT: self.nodes[node]})})
                yield Message(told, reply_to=message)
            elif node != self.deaf:
                try:
                    yield self.app(message, context)
                except RuntimeError as error:
                    from flwr.app import Error

                    yield Message(Error(0, f"Traceback ...\n{error}: its end\n"), reply_to=message)


Runtime.__abstractmethods__ = frozenset()


def messages(clients):
    content = RecordDict({"arrays": ArrayRecord({"x": Array(np.zeros(3))})})
    return [Message(content, k, "train") for k in clients]


def test_messages_for_clients_reach_their_nodes_and_come_back_as_theirs():
    runtime = Runtime()
    grid = FlowerGrid(runtime, 3)
    assert runtime.looks > 1
    grid.invite([0, 1])
    assert list(grid.get_node_ids()) == [0, 1]
    replies = list(grid.send_and_receive(messages([0, 1, 2])))
    assert [r.metadata.src_node_id for r in replies] == [0, 1, 2]
    for k in (0, 1):
        np.testing.assert_allclose(replies[k].content["arrays"]["x"].numpy(), k)
    assert replies[2].error.reason == "no: its end"  # one line of what the runtime told


def test_a_node_that_does_not_answer_has_failed():
    grid = FlowerGrid(Runtime(deaf=901), 3, timeout=1.0)
    replies = list(grid.send_and_receive(messages([0, 1])))
    assert not replies[0].has_error()
    assert replies[1].error.reason == "did not answer in time"


def test_nodes_that_are_not_the_clients_are_refused():
    with pytest.raises(InputError, match=r"no node has partition-id 3; 3 nodes are there"):
        FlowerGrid(Runtime(), 4, patience=1.0)
    with pytest.raises(InputError, match="two nodes have the same"):
        FlowerGrid(Runtime(partitions={1: 0, 2: 0, 3: 1}), 2, patience=1.0)


def test_nodes_that_are_waited_for_are_told(monkeypatch, capfd):
    monkeypatch.setattr(waiting, "FIRST", 0.2)
    with pytest.raises(InputError, match="no node has partition-id 3"):
        FlowerGrid(Runtime(), 4, patience=1.0)
    assert "s for the nodes of 4 clients; 3 are there\n" in capfd.readouterr().err

    class Slow(Runtime):
        def send_and_receive(self, messages, *, timeout=None):
            time.sleep(0.5)
            return list(super().send_and_receive(messages, timeout=timeout))

    FlowerGrid(Slow(), 3).send_and_receive(messages([1, 2]))
    assert "s for the nodes of clients 1, 2\n" in capfd.readouterr().err
