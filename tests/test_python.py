"""`fedsvd.run`, `sweep` and `results` as functions: what they return, and what they leave alone."""

import dataclasses
import inspect
import json
import logging
import os
import signal
import sys
import threading

import cloudpickle
import pandas as pd
import pytest
import torch
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig
from omegaconf import OmegaConf

import fedsvd
from fedsvd import execute
from fedsvd.calling import called
from fedsvd.composing import compose
from fedsvd.errors import InputError, RunError, TrialsFailed
from tests import tiny


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    made = tiny.make_inputs(tmp_path_factory.mktemp("inputs"))
    return [one for one in made if not one.startswith("rounds=")]


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "it's one"
    return fedsvd.run(*inputs, "seed=3", rounds=2, folder=folder, **{"privacy.epsilon": 3})


def state():
    """What a call of a function must not change."""
    every = [logging.getLogger(), logging.getLogger("fedsvd"), logging.getLogger("flwr")]
    return (
        list(sys.argv), list(sys.path), os.getcwd(), dict(os.environ), torch.get_num_threads(),
        sys.stdout, sys.stderr, torch.random.get_rng_state().tolist(),
        [(x.level, list(x.handlers), x.propagate) for x in every],
        GlobalHydra.instance().is_initialized(), signal.getsignal(signal.SIGINT),
    )  # fmt: skip


def test_a_run_gives_what_the_command_gives(done, inputs, tmp_path):
    given = [*inputs, "rounds=2", "seed=3", "privacy.epsilon=3"]
    other = tiny.run(tmp_path / "other", given)
    assert done.summary["state_digest"] == other["state_digest"]
    assert done.summary == json.loads((done.folder / "summary.json").read_text())
    assert (done.config["privacy.epsilon"], done.seed) == (3, 3)
    assert repr(done).startswith("Finished(")
    with pytest.raises(dataclasses.FrozenInstanceError):
        done.folder = tmp_path


def test_its_tables_hold_what_the_files_hold(done):
    lines = [json.loads(x) for x in (done.folder / "metrics.jsonl").read_text().splitlines()]
    history = done.history
    assert list(history["round"]) == [0, 1, 2]
    for key in ("loss", "bytes_up", "epsilon_max", "clients"):
        for found, line in zip(history[key], lines, strict=True):
            assert found == line[key] if key in line else pd.isna(found)
    told = json.loads((done.folder / "privacy.json").read_text())
    ledger = {client["client"]: client for client in told["clients"]}
    table = done.clients
    assert list(table.index) == sorted(ledger)
    for client, row in table.iterrows():
        assert (row["examples"], row["epsilon"]) == (
            ledger[client]["examples"], ledger[client]["epsilon"],
        )  # fmt: skip
        reported = [x["reports"][str(client)] for x in lines if str(client) in x.get("reports", {})]
        assert (
            pd.isna(row["last_loss"]) if not reported else row["last_loss"] == reported[-1]["loss"]
        )
    reports = done.reports
    assert len(reports) == sum(len(x["clients"]) for x in lines)
    one = reports.iloc[0]
    told = lines[1]["reports"][str(int(one["client"]))]
    assert one["loss"] == told["loss"]
    quantiles = told["grad_norm_quantiles"]
    assert [one[f"grad_norm_{q}"] for q in ("q10", "q50", "q90")] == quantiles


def test_a_finished_run_is_found_again(done, capfd):
    again = fedsvd.run(resume=done.folder)
    assert "is finished, after 2 rounds" in capfd.readouterr().out
    assert again == done == fedsvd.results.read_run(done.folder)


def test_its_model_loads(done):
    assert done.load().predict(["good film"])[0] in ("0", "1")


@pytest.mark.parametrize("bad", [None, "training.batch_size", "nothing"])
def test_a_process_is_left_as_it_was(inputs, tmp_path, monkeypatch, bad):
    """Also after an error, before and after Hydra has begun."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.delenv("HYDRA_FULL_ERROR", raising=False)
    torch.set_num_threads(2)  # engine.threads=1 in the run
    handler, held = logging.NullHandler(), logging.getLogger("flwr")
    monkeypatch.setattr(held, "handlers", [*held.handlers, handler])
    # Not hydra/job_logging: it closes all handlers of the process, those of pytest too.
    given = [*inputs, "hydra.verbose=true"]
    before = state()
    if bad is None:
        fedsvd.run(*given, rounds=1)
        assert [p.name for p in tmp_path.iterdir()] == ["outputs"]
    else:
        with pytest.raises(InputError, match=f"^{bad}: "):
            fedsvd.run(*given, rounds=1, **{bad: -1})
    for was, now in zip(before, state(), strict=True):
        assert was == now


def test_what_is_wrong_is_an_exception_of_one_line(inputs, capfd):
    with pytest.raises(InputError) as caught:
        fedsvd.run(*inputs, **{"adapter.rank": 17})
    assert str(caught.value).startswith("adapter.rank: 17 is not allowed")
    assert "\n" not in str(caught.value)
    assert "error:" not in capfd.readouterr().err


def test_a_process_runs_one_at_a_time(inputs):
    with called(), pytest.raises(RunError, match="busy with a run"):
        fedsvd.run(*inputs)


def test_ctrl_c_is_pythons():
    with pytest.raises(KeyboardInterrupt, match="interrupted"), called():
        signal.raise_signal(signal.SIGINT)
    with pytest.raises(SystemExit) as caught, called():
        signal.raise_signal(signal.SIGTERM)
    assert caught.value.code == 143


def test_outside_the_main_thread(inputs, tmp_path):
    found = []
    work = threading.Thread(
        target=lambda: found.append(
            fedsvd.run(*inputs, rounds=1, folder=tmp_path / "a", show=False)
        )
    )
    work.start()
    work.join()
    assert found[0].summary["rounds_completed"] == 1


def test_without_show_nothing_is_printed(inputs, tmp_path, capfd):
    fedsvd.run(*inputs, rounds=1, folder=tmp_path / "a", show=False)
    assert capfd.readouterr().out == ""
    assert "round 1/1" in (tmp_path / "a" / "run.log").read_text()


def test_a_sweep_is_a_table(inputs, tmp_path, capfd):
    grid = {"adapter.rank": [1, 2], "seed": [0]}
    with pytest.raises(TrialsFailed) as caught:
        fedsvd.sweep(inputs, {"adapter.rank": [2, 17]}, rounds=1, folder=tmp_path / "bad")
    assert "trial 1 (adapter.rank=17): adapter.rank: 17" in str(caught.value)
    assert caught.value.__notes__ == [f"finished trials: fedsvd.results({str(tmp_path / 'bad')!r})"]
    table = fedsvd.sweep(inputs, grid, rounds=1, folder=tmp_path / "sweep")
    assert table.attrs["folder"] == str(tmp_path / "sweep")
    assert list(table["adapter.rank"]) == [1, 2]
    for i, row in table.iterrows():
        summary = json.loads((tmp_path / "sweep" / str(i) / "summary.json").read_text())
        assert (row["accuracy"], row["state_digest"]) == (
            summary["accuracy"], summary["state_digest"],
        )  # fmt: skip
    both = fedsvd.results([tmp_path / "bad", tmp_path / "sweep", tmp_path], keys=["training.lr"])
    assert len(both) == 3
    assert set(both["training.lr"]) == {0.8}


def test_optuna_searches(inputs, tmp_path):
    """The command of docs/python.md: a text in the grid is the sweeper's own."""
    pytest.importorskip("optuna", reason="the [optuna] extra is not installed")
    table = fedsvd.sweep(
        inputs, {"training.lr": "tag(log, interval(0.1, 2))"}, rounds=1, folder=tmp_path / "search",
        show=False, **{"hydra/sweeper": "optuna", "hydra.sweeper.n_trials": 2,
                       "hydra.sweeper.direction": "maximize", "hydra.sweeper.n_jobs": 1},
    )  # fmt: skip
    best = OmegaConf.load(tmp_path / "search" / "optimization_results.yaml")
    assert best.best_value == table["accuracy"].max()
    assert table["training.lr"].nunique() == 2
    assert table["training.lr"].between(0.1, 2).all()


def test_verbose_and_the_log_file(inputs, tmp_path, capfd):
    """hydra.verbose shows what libraries say, and run.log holds it beside what was printed."""
    done = fedsvd.run(*inputs, "hydra.verbose=[fedsvd]", rounds=1, folder=tmp_path / "a")
    log, err = (done.folder / "run.log").read_text(), capfd.readouterr().err
    for told in (log, err):
        assert "[fedsvd][DEBUG] - fedsvd 0." in told
    assert "[fedsvd][INFO] - round 1/1" in log
    assert "round 1/1" not in err


@pytest.mark.parametrize(
    ("given", "level"),
    [
        ([], logging.ERROR),
        (["hydra.verbose=[flwr]"], logging.DEBUG),
        (["hydra.verbose=true"], logging.DEBUG),
    ],
)
def test_flower_imported_before_is_quiet_unless_it_is_asked_for(given, level):
    flower = logging.getLogger("flwr")
    before = flower.level, HydraConfig.instance().cfg
    try:
        flower.setLevel(logging.DEBUG)  # as Flower's own import leaves it
        HydraConfig.instance().set_config(compose(given, hydra=True))
        execute.quiet()
        assert flower.level == level
    finally:
        flower.setLevel(before[0])
        HydraConfig.instance().cfg = before[1]


def test_the_log_file_says_what_ended_a_run(inputs, tmp_path):
    folder = tmp_path / "a"
    with pytest.raises(RunError):
        fedsvd.run(*inputs, "faults=injected", "faults.rate=1.0", folder=folder, show=False)
    assert "[ERROR] - " in (folder / "run.log").read_text()


@pytest.mark.parametrize(
    ("ask", "message"),
    [
        (lambda: fedsvd.sweep([], {}), "grid: must be a dictionary"),
        (lambda: fedsvd.sweep("rounds=1", ["seed=1,2"]), "grid: must be a dictionary"),
        (lambda: fedsvd.sweep("hydra.sweep.dir=a", {"seed": [1]}), "hydra.sweep.dir: give folder="),
        (lambda: fedsvd.results("nowhere"), "nowhere: is not a folder"),
        (lambda: fedsvd.results([]), "folders: there is none"),
        (lambda: fedsvd.run("--cfg"), "overrides: '--cfg' is not allowed"),
        (lambda: fedsvd.run(rounds="2"), "rounds: '2' is not allowed; it must be a whole number"),
        (lambda: fedsvd.run(seed=[1]), r"seed: \[1\] is not allowed"),
    ],
)
def test_what_cannot_be_asked(ask, message, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError, match=message):
        ask()
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_modules_stay_modules():
    import fedsvd.results.collect
    import fedsvd.run
    import fedsvd.sweep.launch
    from fedsvd.run import main, run

    assert callable(fedsvd.run)
    assert fedsvd.run.main is main
    assert fedsvd.run.run is run
    assert callable(fedsvd.sweep)
    assert fedsvd.sweep.launch
    assert callable(fedsvd.results)
    assert fedsvd.results.collect
    assert "show" in inspect.signature(fedsvd.run).parameters
    assert cloudpickle.loads(cloudpickle.dumps(fedsvd.sweep)) is fedsvd.sweep
    with pytest.raises(AttributeError, match="no attribute 'nothing'"):
        fedsvd.nothing  # noqa: B018
