"""python -m benchmarks.round: what a round costs besides training: 3 of 6 clients, 1.6 MB, no-op.

Baseline: the same ClientApp called three times without grid, strategy or aggregation.
"""

import numpy as np
from flwr.app import ConfigRecord, Context, Message, RecordDict

from benchmarks.common import interleaved, machine, table
from benchmarks.noop import noop_app
from fedsvd.engines.inline import InlineGrid
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.records import ARRAYS, to_record
from fedsvd.strategies import FFA


def main() -> None:
    import torch

    # 25 layers of 1024, rank 8: B alone is 0.8 MB, A and B 1.6 MB.
    pair = LowRank(torch.randn(8, 1024), torch.randn(1024, 8))
    state = AdapterState({f"layer{i}": pair for i in range(25)})
    app = noop_app()
    grid = InlineGrid(app, 6)
    strategy = FFA()
    strategy.broadcasts = ("A", "B")  # type: ignore[misc]  # 1.6 MB down and up
    arrays = to_record(state.tensors())
    content = RecordDict({ARRAYS: arrays})
    contexts = [Context(1, k, {}, RecordDict(), {}) for k in range(3)]

    def bare() -> None:
        for k in range(3):
            app(Message(content, k, "train"), contexts[k])

    def round() -> None:
        grid.invite([0, 2, 4])
        messages = strategy.configure_train(1, arrays, ConfigRecord(), grid)
        strategy.aggregate_train(1, list(grid.send_and_receive(messages)))

    print(machine())
    print(f"{sum(np.prod(t.shape) for t in state.tensors().values()) * 4 / 1e6:.2f} MB each way")
    seconds = interleaved({"three bare client calls": bare, "inline round": round}, 101)
    table("No-op round, 3 of 6 clients", seconds, "three bare client calls")


if __name__ == "__main__":
    main()
