"""Dropout is drawn in training, from its own stream, and is off in evaluation."""

import pytest
import torch

from fedsvd.client.training import train_locally
from fedsvd.client.worker import get_worker
from tests.conftest import SMALL, compose_settings


@pytest.mark.parametrize("key", ["model.dropout=0.3", "adapter.dropout=0.3"])
def test_dropout_changes_training_repeatably_and_not_evaluation(key):
    # B = 0 would hide the adapter's dropout, so start from PiSSA's factors.
    overrides = [*SMALL, "privacy=none", "adapter.init=pissa", "training.lr=5"]
    plain = get_worker(compose_settings(*overrides))
    rows = plain.task.validation[:16]
    expected = train_locally(plain, plain.initial, 0, 1).state.digest()
    scores = plain.evaluate(plain.initial, rows)

    worker = get_worker(compose_settings(*overrides, key))
    torch.manual_seed(1)
    first = train_locally(worker, worker.initial, 0, 1).state.digest()
    torch.manual_seed(2)  # the global generator has no say
    assert train_locally(worker, worker.initial, 0, 1).state.digest() == first
    assert first != expected
    assert worker.evaluate(worker.initial, rows) == scores
