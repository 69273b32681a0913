"""A trial in a process that has had others is the trial alone, bit by bit, and leaves nothing."""

import gc
import os
import signal
import weakref

import pytest
import torch

from fedsvd.client import remembered, worker
from fedsvd.errors import InputError
from fedsvd.models import kept
from fedsvd.models.classifier import Classifier
from fedsvd.run import main
from fedsvd.strategies import FedAvg, Strategy
from fedsvd.sweep.trial import Order, _run
from tests.tiny import make_inputs, outcome, run

TRIAL = ["model.head=frozen_random", "rounds=3", "adapter.rank=2"]
HERE = "strategy._target_=tests.sweep.test_reuse"
OTHERS = {
    "another adapter": ["adapter=pissa"],
    "an adapter of its own form": ["adapter=sorsa", "strategy=fedavg"],
    "another rank": ["adapter.rank=4", "model.head=frozen_random"],
    "another precision": ["training.precision=bf16"],
    "another seed and more threads": ["seed=5", "engine.threads=2"],
    "dense updates": ["strategy=flora", "privacy=none"],
    "dropout": ["model.dropout=0.2"],
    "the same": TRIAL,
}


def anew():
    worker.forget()
    kept.forget()
    remembered.forget()


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("fedsvd.recorders.report.write_report", lambda *_: None)


@pytest.fixture(scope="module")
def alone(inputs, tmp_path_factory):
    anew()
    folder = tmp_path_factory.mktemp("alone") / "run"
    run(folder, inputs, *TRIAL)
    return outcome(folder)


def test_after_each_of_others(inputs, alone, tmp_path):
    anew()
    for number, (name, other) in enumerate(OTHERS.items()):
        run(tmp_path / f"other{number}", inputs, *other)
        run(tmp_path / str(number), inputs, *TRIAL)
        assert outcome(tmp_path / str(number)) == alone, name


class Spoils(Strategy):
    """Changes what the process holds, as code of users may, and ends as it is told to."""

    def aggregate(self, state, updates):
        for model in [o for o in gc.get_objects() if type(o) is Classifier]:
            for p in model.parameters():
                p.data.mul_(1.5)
        torch.manual_seed(7)
        torch.set_num_threads(3)
        torch.set_default_dtype(torch.float64)
        if os.environ.get("FEDSVD_TEST_ENDS") == "signal":
            os.kill(os.getpid(), signal.SIGINT)
            return FedAvg().aggregate(state, updates)
        raise ZeroDivisionError("a fault of a user's strategy")


@pytest.mark.parametrize("ends", ["error", "signal"])
def test_after_one_that_spoilt_all_and_failed_or_was_interrupted(
    inputs, alone, ends, tmp_path, monkeypatch, capsys
):
    monkeypatch.setenv("FEDSVD_TEST_ENDS", ends)
    anew()
    run(tmp_path / "first", inputs, *TRIAL)
    given = [*inputs, f"{HERE}.Spoils", f"hydra.run.dir={tmp_path / 'spoilt'}"]
    assert main(given) == {"error": 1, "signal": 130}[ends]
    told = capsys.readouterr().err
    assert {"error": "ZeroDivisionError", "signal": "interrupted"}[ends] in told
    run(tmp_path / "after", inputs, *TRIAL)
    assert outcome(tmp_path / "after") == alone


def test_no_model_of_an_earlier_trial_is_kept_though_one_failed(inputs, tmp_path, monkeypatch):
    models, built = [], worker.build_worker

    def watched(settings):
        made = built(settings)
        models.append(weakref.ref(made.model))
        return made

    monkeypatch.setattr(worker, "build_worker", watched)
    given = [*inputs, "-m", "adapter.rank=2,3,400,4", f"hydra.sweep.dir={tmp_path}", "rounds=1"]
    assert main(given) == 1
    broken = [*inputs, "-m", "seed=1,2,3", f"{HERE}.Spoils", f"hydra.sweep.dir={tmp_path / 'b'}"]
    assert main(broken) == 1
    run(tmp_path / "last", inputs, "rounds=1", "seed=9")
    gc.collect()
    assert len(models) == 7
    assert [m() is None for m in models] == [True] * 6 + [False]


def test_the_first_logits_are_those_of_a_model_that_was_asked(inputs, tmp_path, monkeypatch):
    anew()
    asked, plain = [], worker.Worker.outputs

    def counted(self, rows):
        asked.append(len(rows))
        return plain(self, rows)

    monkeypatch.setattr(worker.Worker, "outputs", counted)
    common, counts, lines = ["model.head=frozen_random", "rounds=1"], [], []
    for number, more in enumerate(
        (["adapter.rank=2"], ["adapter.rank=3", "training.lr=0.1"], ["seed=1"], ["adapter=pissa"])
    ):
        for memory in (True, False):
            if not memory:
                held, remembered._outputs = remembered._outputs, type(remembered._outputs)()
            del asked[:]
            folder = tmp_path / f"{number}{memory}"
            run(folder, inputs, *common, *more)
            lines.append(outcome(folder))
            if memory:
                counts.append(len(asked))
            else:
                remembered._outputs = held
        assert lines[-1] == lines[-2]
    assert counts == [3, 2, 3, 3]  # at the start, after the round, on the test part


def test_trials_of_one_process_with_a_refused_one_between(inputs, alone, tmp_path):
    """As a process of the Ray launcher runs them."""
    from hydra import compose, initialize_config_dir
    from omegaconf import OmegaConf

    from fedsvd.run import config_folder

    anew()
    found = []
    for number, more in enumerate((["adapter.rank=400"], TRIAL, ["engine.threads=2"], TRIAL)):
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            config = OmegaConf.to_container(compose("config", [*inputs, *more]), resolve=True)
        folder = tmp_path / str(number)
        folder.mkdir()
        found.append(_run(Order(config, [], folder, 1, os.getcwd(), [])))
        if more is TRIAL:
            assert outcome(folder) == alone
    assert found[0].refused
    assert "adapter.rank" in found[0].reason
    with pytest.raises(InputError):
        run(tmp_path / "x", inputs, "adapter.rank=400")
