"""Clients that fail: left out, counted, charged, and the state as if they had not been drawn."""

import json
import threading

import pytest
from flwr.app import ArrayRecord, Message, RecordDict
from flwr.clientapp import ClientApp

from fedsvd import experiment
from fedsvd.client.faults import fault_of
from fedsvd.engines.inline import InlineGrid
from fedsvd.errors import InputError, TooFewReplies
from fedsvd.rounds import attempt, evaluation
from fedsvd.settings.faults import KINDS, FaultSettings
from fedsvd.strategies.build import build_strategy
from tests.conftest import compose_settings
from tests.tiny import make_inputs

WHY = {
    "raise": "failed: injected",
    "hang": "failed: no answer within faults.deadline=1.0 s",
    "nan": "is not finite",
    "inf": "is not finite",
    "names": "sent other tensors than asked for",
    "shapes": "has shape",
    "dtypes": "has dtype float16",
    "stale": "answered a message of another round",
    "repeated": "sent 2 different replies",
    "unknown": "did not answer",
}


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def prepared(inputs, *more):
    settings = compose_settings(*inputs, *more)
    return experiment.prepare(settings, build_strategy(settings.strategy))


def injected(kind, rate=0.4):
    return ["faults=injected", f"faults.kind={kind}", f"faults.rate={rate}", "faults.deadline=1"]


@pytest.mark.parametrize("kind", KINDS)
def test_a_failing_client_is_left_out_counted_and_charged(kind, inputs):
    personal = ["strategy=fedsa"]  # clients keep B: it must be as before, too
    run = prepared(inputs, *personal, *injected(kind))
    number = next(n for n in range(1, 20) if 0 < len(failing(run, n)) < 3)
    bad = failing(run, number)
    metrics = attempt.one_round(run, number)
    assert set(metrics["failed"]) == {str(k) for k in bad}
    assert all(WHY[kind] in why for why in metrics["failed"].values())
    for client in metrics["clients"]:
        assert run.ledger.steps(client) == 1  # spent, also by who failed
    assert set(run.grid.states()) == set(metrics["clients"]) - set(bad)
    assert evaluation.reasons([metrics]) == {
        why: list(metrics["failed"].values()).count(why) for why in metrics["failed"].values()
    }
    # As if they had not been drawn: the same round of the others alone.
    other = prepared(inputs, *personal)
    real = attempt.draw
    try:
        attempt.draw = lambda run, n: ([k for k in real(run, n)[0] if k not in bad], [])
        attempt.one_round(other, number)
    finally:
        attempt.draw = real
    assert run.state.digest() == other.state.digest()


def failing(run, number):
    drawn, _ = attempt.draw(run, number)
    return [k for k in drawn if fault_of(run.settings, number, k) is not None]


def test_faults_come_from_a_stream_of_their_own_at_their_rate(inputs):
    settings = compose_settings(*inputs, *injected("mixed", 0.3))
    drawn = [fault_of(settings, n, k) for n in range(1, 101) for k in range(6)]
    assert drawn == [fault_of(settings, n, k) for n in range(1, 101) for k in range(6)]
    assert abs(sum(kind is not None for kind in drawn) / 600 - 0.3) < 0.06
    assert {kind for kind in drawn if kind} == set(KINDS)
    other = compose_settings(*inputs, *injected("mixed", 0.3), "seed=1")
    assert drawn != [fault_of(other, n, k) for n in range(1, 101) for k in range(6)]


def test_a_round_is_repeated_with_other_streams_until_enough_reply(inputs):
    few = ["faults.min_replies=3", "faults.repeats=50", "privacy=none", "rounds=200"]
    run = prepared(inputs, *injected("raise", 0.5), *few)
    rounds = [attempt.one_round(run, n) for n in (1, 2)]
    assert all(m["failed"] == {} for m in rounds)
    lost = [f for m in rounds for f in m.get("failed_attempts", [])]
    assert lost
    assert all(0 < len(f) <= 3 for f in lost)
    assert sum(run.rounds_taken) == 3 * (2 + len(lost))  # what was done in vain counts
    assert run.attempt == 0


def test_repetitions_are_limited_and_spend_the_budget(inputs):
    run = prepared(inputs, *injected("nan", 1.0), "faults.min_replies=1", "faults.repeats=1")
    before = run.state.digest()
    with pytest.raises(
        TooFewReplies, match=r"round 1: 0 valid replies of \d, faults\.min_replies=1"
    ):
        attempt.one_round(run, 1)
    assert run.state.digest() == before
    assert run.attempt == 2
    assert sum(run.ledger.steps(k) for k in range(6)) == 6
    run = prepared(inputs, *injected("nan", 1.0), "faults.min_replies=1", "faults.below=stop")
    with pytest.raises(TooFewReplies):
        attempt.one_round(run, 1)
    assert sum(run.ledger.steps(k) for k in range(6)) == 3


def test_attempts_draw_other_noise_and_the_first_is_as_ever(inputs):
    from fedsvd.client.training import train_locally

    run = prepared(inputs)
    results = [
        train_locally(run.worker, run.worker.initial, 0, 1, attempt=attempt).state.digest()
        for attempt in (0, 0, 1, 2)
    ]
    assert results[0] == results[1]
    assert len(set(results)) == 3


def test_the_timer_interrupts_python_code_and_late_replies_are_left_out():
    app = ClientApp()

    @app.train()
    def train(message, context):
        if message.metadata.dst_node_id == 0:
            threading.Event().wait()
        return Message(RecordDict({"arrays": ArrayRecord()}), reply_to=message)

    def send(grid):
        content = RecordDict({"arrays": ArrayRecord()})
        return list(grid.send_and_receive([Message(content, k, "train") for k in (0, 1)]))

    slow, quick = send(InlineGrid(app, 2, 0.2))
    assert slow.error.reason == "no answer within faults.deadline=0.2 s"
    assert not quick.has_error()


@pytest.mark.parametrize(
    ("values", "message"),
    [
        ({"kind": "nann"}, "did you mean 'nan'"),
        ({"kind": "nan", "rate": 1.5}, "a probability"),
        ({"rate": 0.5}, "choose faults.kind"),
        ({"kind": "hang", "rate": 0.5}, "a number of seconds with faults.kind=hang"),
        ({"below": "wait"}, "choose from repeat, stop"),
        ({"deadline": 0.0}, "above 0"),
        ({"min_replies": -1}, "at least 0"),
    ],
)
def test_settings_that_make_no_sense_are_refused(values, message):
    with pytest.raises(InputError, match=message):
        FaultSettings(**values)


def test_the_summary_counts_reasons(inputs, tmp_path, monkeypatch):
    from tests.tiny import run

    monkeypatch.setattr("fedsvd.recorders.report.write_report", lambda *_: None)
    summary = run(tmp_path / "x", [*inputs, *injected("nan")])
    assert summary["failures"] == sum(summary["failure_reasons"].values()) > 0
    ledger = json.loads((tmp_path / "x" / "privacy.json").read_text())
    assert ledger["epsilon_max"] <= 1
    assert sum(c["steps"] for c in ledger["clients"]) == 4 * 3


@pytest.mark.parametrize("privacy", ["dp_sgd", "none", "client_level"])
def test_a_client_that_holds_nothing_takes_part(privacy, inputs):
    """With partition.min_examples=0: it sends noise alone under dp_sgd, and is charged as others."""
    run = prepared(
        inputs, "clients.number=80", "clients.participation=all", "partition.min_examples=0",
        "privacy.delta=1e-3", "rounds=1", f"privacy={privacy}",
    )  # fmt: skip
    empty = [k for k, part in enumerate(run.worker.parts) if not len(part)]
    assert empty
    assert attempt.one_round(run, 1)["failed"] == {}
    assert {c["steps"] for c in run.ledger.as_dict()["clients"]} == {1}
