"""The inline grid runs an unmodified ClientApp under an unmodified Flower strategy and loop."""

import numpy as np
import pytest
from flwr.app import Array, ArrayRecord, Message, RecordDict
from flwr.serverapp.strategy import FedAvg

from fedsvd.engines.inline import InlineGrid
from tests.engines.apps import adding_app


@pytest.mark.filterwarnings("ignore")
def test_flowers_own_loop_runs_and_client_state_persists():
    grid = InlineGrid(adding_app(), 4)
    result = FedAvg(fraction_evaluate=0.0).start(
        grid, ArrayRecord({"x": Array(np.zeros(3))}), num_rounds=2
    )
    np.testing.assert_allclose(result.arrays["x"].numpy(), 3.0)  # twice the mean of 0..3
    assert result.train_metrics_clientapp[2]["seen"] == 2


def test_only_the_invited_are_shown_and_failures_come_back_as_errors():
    grid = InlineGrid(adding_app(fail=2), 4)
    grid.invite([1, 2])
    assert list(grid.get_node_ids()) == [1, 2]
    content = RecordDict({"arrays": ArrayRecord({"x": Array(np.zeros(2))})})
    messages = [Message(content, k, "train") for k in (1, 2)]
    good, bad = grid.send_and_receive(messages)
    np.testing.assert_allclose(good.content["arrays"]["x"].numpy(), 1.0)
    assert bad.has_error()
    assert "RuntimeError: no" in bad.error.reason
    assert bad.metadata.src_node_id == 2
