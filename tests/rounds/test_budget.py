"""`training.microbatch_tokens=auto`: what is chosen moves nothing else, and is kept."""

import random

import numpy as np
import pytest
import torch

from fedsvd.checkpoints.resume import find
from fedsvd.client import budget as measuring
from fedsvd.client.worker import forget, get_worker
from fedsvd.errors import InputError
from fedsvd.experiment import prepare
from fedsvd.rounds import budget
from fedsvd.settings.clients import DEFAULT_BUDGET
from fedsvd.strategies.build import build_strategy
from tests.conftest import compose_settings
from tests.tiny import outcome, run

AUTO = "training.microbatch_tokens=auto"
# The adapter's start follows from texts, and in its last bits from the budget.
LOOKS = ["privacy=none", "adapter=gradient", "data.public=12", "model.head=frozen_random"]
CHOSEN = 16  # tokens: a batch of the tiny inputs is cut into several


@pytest.fixture
def eager(monkeypatch):
    """Measure however short a run is, for a moment, and take CHOSEN whatever it takes."""
    monkeypatch.setattr(measuring, "POWERS", (CHOSEN,))
    monkeypatch.setattr(measuring, "SECONDS", 0.05)
    monkeypatch.setattr(measuring, "allowed", lambda steps: 1e9)
    monkeypatch.setattr(budget, "choose", lambda seconds: min(seconds))
    budget.forget()
    forget()
    yield
    budget.forget()


def generators():
    state = np.random.get_state(legacy=False)  # noqa: NPY002
    return (
        torch.get_rng_state().numpy().tobytes(),
        random.getstate(),
        state["state"]["key"].tobytes(),
    )


def modes(worker):
    return [(name, module.training) for name, module in worker.model.named_modules()]


@pytest.mark.parametrize("more", [[], LOOKS])
def test_a_run_has_the_bits_of_one_with_the_number_written_down(
    tmp_path, tiny_inputs, eager, capsys, more
):
    given = [*tiny_inputs, "model.dropout=0.1", *more]
    before = generators()
    found = run(tmp_path / "auto", given, AUTO)
    assert generators() == before
    assert (
        f"\n{AUTO}: {CHOSEN}, by a batch's time over that with 768 (16: " in capsys.readouterr().out
    )
    assert found["microbatch_tokens"] == CHOSEN
    assert f"microbatch_tokens: {CHOSEN}\n" in (tmp_path / "auto" / "config.yaml").read_text()
    number = f"training.microbatch_tokens={CHOSEN}"
    run(tmp_path / "number", given, number)
    for name in ("privacy.json", "config.yaml"):
        texts = [(tmp_path / k / name).read_text() for k in ("auto", "number")]
        assert texts[0] == texts[1]
    auto, told = (outcome(tmp_path / k) for k in ("auto", "number"))
    assert auto == told
    if more:  # noise of a private step is on a grid, in which rounding is lost
        assert run(tmp_path / "other", given)["state_digest"] != told[0]


def test_a_run_that_goes_on_keeps_its_number_and_measures_nothing(
    tmp_path, tiny_inputs, eager, monkeypatch
):
    given = [*tiny_inputs, "privacy=none", "training.schedule=constant"]
    run(tmp_path, given, AUTO, "rounds=1")
    assert find(tmp_path).facts["config"]["training.microbatch_tokens"] == CHOSEN
    budget.forget()
    monkeypatch.setattr(budget, "measure", lambda *_: pytest.fail("measured anew"))
    found = run(tmp_path, given, AUTO, "rounds=2", "resume=auto")
    assert (found["microbatch_tokens"], found["rounds_completed"]) == (CHOSEN, 2)
    assert f"microbatch_tokens: {CHOSEN}\n" in (tmp_path / "config.yaml").read_text()
    with pytest.raises(InputError, match=r"training\.microbatch_tokens was 16, now 768"):
        run(tmp_path, given, "rounds=3", "resume=auto")


def test_measuring_leaves_the_worker_and_the_ledger_as_they_were(tiny_inputs, eager):
    settings = compose_settings(*tiny_inputs)
    worker = get_worker(settings)
    before = worker.initial.digest(), generators(), worker.trains, modes(worker)
    found = measuring.measure(worker)
    assert sorted(found.seconds) == [CHOSEN, DEFAULT_BUDGET]
    assert min(found.seconds.values()) > 0
    state = worker.model.read(worker.initial)
    assert (state.digest(), generators(), worker.trains, modes(worker)) == before
    assert all(p.grad is None for p in worker.model.parameters())


def test_a_process_remembers_its_choice_for_the_same_model_alone(tiny_inputs, eager, monkeypatch):
    def chosen(*more):
        return budget.settled(compose_settings(*tiny_inputs, AUTO, *more)).training.budget

    assert chosen() == CHOSEN
    monkeypatch.setattr(budget, "choose", lambda seconds: max(seconds))
    assert chosen("seed=5", "training.lr=0.1") == CHOSEN
    assert chosen("training.precision=bf16") == DEFAULT_BUDGET
    assert chosen("adapter.rank=1") == DEFAULT_BUDGET


def test_a_short_run_takes_the_default_and_says_why(tiny_inputs, capsys):
    budget.forget()
    settings = budget.settled(compose_settings(*tiny_inputs, AUTO))
    assert settings == compose_settings(*tiny_inputs)
    assert f"{AUTO}: 768, the default: the local steps take about 0 s" in capsys.readouterr().out


def test_private_rows_do_not_choose(tiny_inputs):
    worker = get_worker(compose_settings(*tiny_inputs))
    lengths = worker.tokens.lengths
    before = measuring.batch_of(worker)
    for rows in worker.parts:
        lengths[torch.as_tensor(rows)] = 1
    assert torch.equal(before, measuring.batch_of(worker))
    forget()


def test_candidates_lie_between_the_longest_text_and_the_batch():
    assert measuring.candidates(torch.tensor([4, 5, 30])) == [768]
    assert measuring.candidates(torch.tensor([27] * 130)) == [512, 768, 1024, 2048]
    assert measuring.candidates(torch.tensor([600] * 8)) == [768, 1024, 2048, 4096]
    lengths = torch.tensor([2, 3, 3, 10])
    assert [measuring.padded(lengths, c) for c in (4, 9, 40)] == [18, 19, 40]


def test_another_must_be_clearly_faster():
    assert measuring.choose({512: 1.0, 768: 1.04}) == 768
    assert measuring.choose({512: 1.2, 768: 1.0, 1024: 0.94}) == 1024
    assert measuring.choose({768: 1.0, 1024: 0.9, 2048: 0.8, 4096: 0.78}) == 2048
    assert measuring.choose({}) == 768
    assert measuring.allowed(1.0) == pytest.approx(0.02)
    assert measuring.allowed(400.0) == 3.0
    assert measuring.allowed(36000.0) == 180.0


def test_clients_in_other_processes_never_choose(tiny_inputs):
    settings = compose_settings(*tiny_inputs, AUTO)
    with pytest.raises(RuntimeError, match="auto, and no number was chosen"):
        _ = settings.training.budget
    with pytest.raises(InputError, match=r"microbatch_tokens: 'auto' is not allowed; .*=own"):
        compose_settings("partition=own", "data.labels=[a,b]", "data.public_size=9", AUTO)


def test_ray_workers_get_the_number(tiny_inputs, eager):
    from fedsvd.engines.ray import worker_settings

    settings = compose_settings(*tiny_inputs, AUTO)
    run = prepare(settings, build_strategy(settings.strategy))
    assert run.settings.training.microbatch_tokens == CHOSEN
    assert worker_settings(run.settings, ("B",)).training.microbatch_tokens == CHOSEN
    assert run.worker is get_worker(run.settings)
    assert not run.orders
