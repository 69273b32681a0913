"""What a client's messages hold."""

from unittest.mock import patch

import pytest
import torch
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedsvd import records
from fedsvd.client import app
from fedsvd.client.worker import get_worker
from fedsvd.engines.inline import InlineGrid
from tests.conftest import SMALL, compose_settings


def reply(*overrides):
    settings = compose_settings(*SMALL, *overrides)
    worker = get_worker(settings)
    arrays = records.to_record(worker.initial.tensors())
    content = RecordDict({records.ARRAYS: arrays, "config": ConfigRecord({"server-round": 1})})
    grid = InlineGrid(app.make_client_app(settings), settings.clients.number)
    message = Message(content, dst_node_id=2, message_type=MessageType.TRAIN)
    (answer,) = grid.send_and_receive([message])
    return worker, answer


def test_without_diagnostics_nothing_but_the_release_and_the_steps_leave():
    worker, answer = reply("privacy.diagnostics=false")
    assert set(answer.content) == {records.ARRAYS, records.METRICS, records.REPORT}
    assert dict(records.metrics_of(answer)) == {records.WEIGHT: 1.0}
    assert records.report_of(answer) == {"steps": 2}
    assert set(records.from_record(records.arrays_of(answer))) == set(worker.model.trainable())


@pytest.mark.parametrize("diagnostics", [True, False])
def test_a_client_evaluates_under_privacy_only_with_diagnostics(diagnostics):
    settings = compose_settings(*SMALL, f"privacy.diagnostics={str(diagnostics).lower()}")
    arrays = records.to_record(get_worker(settings).initial.tensors())
    config = ConfigRecord({app.PART: "validation"})
    content = RecordDict({records.ARRAYS: arrays, records.CONFIG: config})
    grid = InlineGrid(app.make_client_app(settings), settings.clients.number)
    (answer,) = grid.send_and_receive([Message(content, 2, MessageType.EVALUATE)])
    if diagnostics:
        assert {"accuracy", "loss"} <= set(records.metrics_of(answer))
    else:
        assert answer.has_error()
        assert "privacy.diagnostics" in answer.error.reason


def test_public_counts_and_diagnostics_do_leave():
    worker, answer = reply("privacy.public_counts=true")
    assert dict(records.metrics_of(answer)) == {records.WEIGHT: float(len(worker.parts[2]))}
    assert set(records.report_of(answer)) == {
        "steps", "loss", "grad_norm_quantiles", "clip_fraction",
    }  # fmt: skip


@pytest.mark.parametrize("diagnostics", [True, False])
def test_a_failure_after_the_first_step_is_reported_with_its_steps(diagnostics):
    from fedsvd.client import training

    real, calls = training.dp_step, []

    def step(optimizer, groups, losses):
        calls.append(groups)
        if len(calls) == 2:
            raise ValueError("the text 'private words' is too long")
        return real(optimizer, groups, losses)

    with patch.object(training, "dp_step", step):
        worker, answer = reply(f"privacy.diagnostics={str(diagnostics).lower()}")
    report = records.report_of(answer)
    assert report["steps"] == 1
    assert ("private words" in report[records.FAILED]) == diagnostics
    fault = records.fault(answer, dict.fromkeys(worker.model.trainable(), torch.zeros(1)))
    assert fault.startswith("failed: ValueError")
