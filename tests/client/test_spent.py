"""Whatever ends a client's training, the ledger holds at least the noised steps that it took."""

import random
import sys

import pytest
import torch

from fedsvd import experiment
from fedsvd.client import app, training
from fedsvd.client.training import train_locally
from fedsvd.errors import ClientsFailed
from fedsvd.privacy import dpsgd
from fedsvd.privacy.dpsgd import ClippingOptimizer
from fedsvd.rounds import noised as rounds_noised
from fedsvd.rounds.attempt import one_round
from fedsvd.strategies.build import build_strategy
from tests.client.test_use import At, Stopped, make
from tests.conftest import compose_settings
from tests.tiny import make_inputs

STEPS = 3


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return [*make_inputs(tmp_path_factory.mktemp("inputs")), f"training.local_steps={STEPS}"]


def prepared(inputs, *more):
    settings = compose_settings(*inputs, *more)
    return experiment.prepare(settings, build_strategy(settings.strategy))


@pytest.fixture
def draws(monkeypatch):
    """The noise that was drawn, entered once it is there."""
    found, real = [], dpsgd.noised
    monkeypatch.setattr(dpsgd, "noised", lambda *g: (real(*g), found.append(1))[0])
    return found


def after(patch, owner, name, call, error=Stopped):
    """Let a function end with an error at its `call`th call, after what it does."""
    real, seen = getattr(owner, name), []

    def then(*args, **kwargs):
        out = real(*args, **kwargs)
        seen.append(1)
        if len(seen) == call:
            raise error
        return out

    patch.setattr(owner, name, then)


PLACES = {
    "the noise is there": (ClippingOptimizer, "add_noise"),
    "divided by the batch": (ClippingOptimizer, "scale_grad"),
    "the strategy's rule": (training, "apply_rule"),
    "the optimiser's step": (torch.optim.SGD, "step"),
    "the step's report": (training, "dp_step"),
}


@pytest.mark.parametrize("place", PLACES)
@pytest.mark.parametrize("error", [Stopped, KeyboardInterrupt])
def test_a_step_that_was_noised_is_entered_before_it_ends(place, error, draws, monkeypatch):
    worker, rule = make("turns")
    after(monkeypatch, *PLACES[place], 2, error)
    reports = []
    with pytest.raises(error):
        train_locally(worker, worker.initial, 0, 1, reports, rule)
    assert len(reports) == len(draws) == 2


@pytest.mark.parametrize("place", [*PLACES, "the reply is encoded"])
def test_a_client_that_fails_past_the_noise_is_charged_the_step(place, inputs, draws, monkeypatch):
    run = prepared(inputs)
    owner, name = PLACES.get(place, (app, "to_record"))
    after(monkeypatch, owner, name, 1 if name == "to_record" else 2)
    metrics = one_round(run, 1)
    (failed,) = (int(k) for k in metrics["failed"])
    expected = STEPS if name == "to_record" else 2
    assert run.ledger.steps(failed) == expected
    assert len(draws) == expected + 2 * STEPS
    assert sum(run.ledger.steps(k) for k in range(6)) == len(draws)


def test_no_line_of_a_step_lies_between_a_draw_and_its_entry(draws):
    worker, rule = make("turns")
    counting = At(0)
    sys.settrace(counting)
    try:
        train_locally(worker, worker.initial, 0, 1, rule=rule)
    finally:
        sys.settrace(None)
    late = 0
    for number in random.Random(0).sample(range(1, counting.lines), 60):
        reports = []
        draws.clear()
        sys.settrace(At(number))
        try:
            train_locally(worker, worker.initial, 0, 1, reports, rule)
        except Stopped:
            late += len(reports) > len(draws)
        finally:
            sys.settrace(None)
        assert len(draws) <= len(reports) <= len(draws) + 1, number
        assert all(torch.is_tensor(r.norms) for r in reports)
    assert late < 12  # hardly any line is between an entry and its draw


def test_reports_are_of_the_steps_that_ended():
    worker, _ = make("plain")
    steps = train_locally(worker, worker.initial, 0, 1).steps
    assert len(steps) == worker.settings.training.local_steps
    assert all(s.examples == len(s.norms) > 0 for s in steps)
    assert dpsgd.UNFINISHED not in steps


def test_a_failure_after_the_servers_noise_leaves_the_round_in_the_ledger(inputs, monkeypatch):
    run = prepared(inputs, "privacy=client_level")
    after(monkeypatch, rounds_noised, "release", 1)
    with pytest.raises(Stopped):
        one_round(run, 1)
    assert sum(run.ledger.steps(k) for k in range(6)) == run.settings.clients.per_round


def test_one_cause_for_all_is_charged_too(inputs, draws, monkeypatch):
    run = prepared(inputs)
    real = training.apply_rule

    def always(*args):
        real(*args)
        raise Stopped

    monkeypatch.setattr(training, "apply_rule", always)
    with pytest.raises(ClientsFailed):
        one_round(run, 1)
    assert sum(run.ledger.steps(k) for k in range(6)) == len(draws) == 3
