"""A ClientApp that sends back what it got, importable in workers; and a round of it."""

from collections.abc import Callable, Iterable

import torch
from flwr.app import ConfigRecord, Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.records import ARRAYS, METRICS, WEIGHT, arrays_of, from_record, to_record
from fedsvd.strategies import FFA


def noop_app() -> ClientApp:
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        tensors = from_record(arrays_of(message))
        content = RecordDict({ARRAYS: to_record(tensors), METRICS: MetricRecord({WEIGHT: 1.0})})
        return Message(content, reply_to=message)

    return app


def state_of(kilobytes: float) -> AdapterState:
    """Pairs (A, B) of rank 8 of so many bytes together: 65.5 kB a layer of 1024, or one small one."""
    layers, width = max(1, round(kilobytes / 65.536)), 1024
    if kilobytes < 65:
        width = round(kilobytes * 1000 / 64)
    return AdapterState(
        {f"layer{i}": LowRank(torch.randn(8, width), torch.randn(width, 8)) for i in range(layers)}
    )


class Shown:
    """The nodes that a strategy is to see."""

    def __init__(self, nodes: Iterable[int]) -> None:
        self.nodes = list(nodes)

    def get_node_ids(self) -> list[int]:
        return self.nodes


def round_of(
    kilobytes: float, send: Callable[[Iterable[Message]], Iterable[Message]]
) -> Callable[[Iterable[int]], None]:
    """Return a round: configure, send to these nodes and back, aggregate."""
    strategy = FFA()
    strategy.broadcasts = ("A", "B")  # type: ignore[misc]
    arrays = to_record(state_of(kilobytes).tensors())

    def one(nodes: Iterable[int]) -> None:
        messages = strategy.configure_train(1, arrays, ConfigRecord(), Shown(nodes))  # type: ignore[arg-type]
        replies = list(send(messages))
        assert not any(reply.has_error() for reply in replies)
        strategy.aggregate_train(1, replies)

    return one
