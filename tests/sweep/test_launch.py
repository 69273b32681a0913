"""hydra/launcher=ray on a real cluster of two nodes, through the command that users give."""

import contextlib
import json
import os
import re
import signal
import sys
import threading
import time

import pytest

import fedsvd
from fedsvd.experiment import prepare
from fedsvd.rounds.attempt import one_round
from fedsvd.run import main
from fedsvd.strategies.build import build_strategy
from fedsvd.sweep.trial import LOG
from tests.clusters import two_nodes
from tests.conftest import TINY, compose_settings

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def cluster():
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture
def sweep(cluster, tmp_path, monkeypatch, capfd):
    """Gives the command; returns its status and what it said."""
    monkeypatch.setattr(sys, "argv", ["fedsvd"])

    def run(*overrides):
        folder = f"hydra.sweep.dir={tmp_path / 'sweep'}"
        status = main(["-m", "hydra/launcher=ray", folder, *TINY, *overrides])
        return status, capfd.readouterr()

    return run


def summary(folder):
    return json.loads((folder / "summary.json").read_text())


def processes(logs):
    """Which processes wrote the logs of trials."""
    told = [re.search(r"process (\d+)", log.read_text()) for log in logs]
    return {t[1] for t in told if t}


def when_training(folders, act):
    """Call `act` with the (process, node) of the first trial that has begun its rounds."""

    def watch():
        deadline = time.monotonic() + 400
        while time.monotonic() < deadline:
            for folder in folders:
                with contextlib.suppress(FileNotFoundError):  # not yet, or just set aside
                    (folder / "metrics.jsonl").stat()
                    told = re.search(r"process (\d+) on node (\w+)", (folder / LOG).read_text())
                    if told and act(int(told[1]), told[2]):
                        return
            time.sleep(0.02)

    thread = threading.Thread(target=watch)
    thread.start()
    return thread


def kill(process, node):
    os.kill(process, signal.SIGKILL)
    return True


def test_four_trials_with_a_failing_pair_and_a_killed_process(sweep, tmp_path):
    # Two trials fail; of the others one is killed once, and one has workers of its own, which
    # compete with the trials for the two CPUs.
    folder = tmp_path / "sweep"
    killer = when_training([folder / "3"], kill)
    given = ["adapter.rank=385,8", "engine=ray,inline", "hydra.launcher.concurrent=2"]
    status, told = sweep(*given)
    killer.join()
    assert status == 1
    assert "2 of 4 trials failed" in told.err
    assert "adapter.rank: 385 is not allowed" in told.err
    assert "trial 3 done (2)" in told.out  # in the second attempt
    done = [summary(folder / str(k)) for k in (2, 3)]
    assert done[0]["state_digest"] == done[1]["state_digest"]
    assert done[0]["epsilon_max"] == done[1]["epsilon_max"]
    settings = compose_settings(*TINY, "engine.threads=1")
    run = prepare(settings, build_strategy(settings.strategy))
    for number in (1, 2):
        one_round(run, number)
    assert done[0]["state_digest"] == run.state.digest()


def test_from_python_it_is_a_table_and_the_cluster_stays(cluster, tiny_inputs, tmp_path):
    given = [*tiny_inputs, "rounds=1"]
    alone = fedsvd.run(*given, "adapter.rank=1", folder=tmp_path / "alone", show=False)
    table = fedsvd.sweep(
        given, {"adapter.rank": [1, 2]}, folder=tmp_path / "sweep", show=False,
        **{"hydra/launcher": "ray", "hydra.launcher.concurrent": 1, "hydra.launcher.reuse": False},
    )  # fmt: skip
    assert list(table["adapter.rank"]) == [1, 2]
    assert table["state_digest"][0] == alone.summary["state_digest"] != table["state_digest"][1]
    assert len(processes(tmp_path / "sweep" / str(k) / LOG for k in (0, 1))) == 2  # one each
    assert len(cluster.list_all_nodes()) > 0


def test_a_node_removed_in_the_middle_and_the_command_given_again(sweep, cluster, tmp_path):
    folder, second = tmp_path / "sweep", cluster.list_all_nodes()[1]

    def remove(process, node):
        if node == second.node_id:
            cluster.remove_node(second)
        return node == second.node_id

    remover = when_training([folder / "0", folder / "1"], remove)
    status, told = sweep("seed=0,1", "rounds=6")
    remover.join()
    assert status == 0, told.err
    assert "(2)" in told.out  # a second attempt
    assert len(list(folder.glob("*/unfinished-1/metrics.jsonl"))) == 1
    digests = [summary(folder / str(k))["state_digest"] for k in (0, 1)]
    before = {p: p.stat().st_mtime_ns for p in folder.glob("*/summary.json")}
    status, told = sweep("seed=0,1", "rounds=6")
    assert status == 0
    assert told.out.count("done before") == 2
    assert before == {p: p.stat().st_mtime_ns for p in folder.glob("*/summary.json")}
    assert digests[0] != digests[1]
    status, told = sweep("seed=0,2", "rounds=6")
    assert status == 2
    assert "holds the run of other settings" in told.err
    assert (folder / "report.html").exists()


def test_a_process_runs_one_trial_after_another_with_the_bits_of_one_alone(
    cluster, tiny_inputs, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(sys, "argv", ["fedsvd"])
    given = [*tiny_inputs, "rounds=1"]
    how = ["hydra.launcher.reuse=true", f"hydra.sweep.dir={tmp_path}"]
    assert main(["-m", "hydra/launcher=ray", *given, "adapter.rank=2,400,3,4", *how]) == 1
    assert len(processes(tmp_path / str(k) / LOG for k in range(4))) <= 3
    assert {p.parent.name for p in tmp_path.glob("*/summary.json")} == {"0", "2", "3"}
    for k, rank in {0: 2, 2: 3, 3: 4}.items():
        settings = compose_settings(*given, f"adapter.rank={rank}")
        run = prepare(settings, build_strategy(settings.strategy))
        one_round(run, 1)
        assert summary(tmp_path / str(k))["state_digest"] == run.state.digest()


def test_an_interrupt_ends_the_trials(sweep, tmp_path):
    process = []

    def interrupt(running, node):
        process.append(running)
        os.kill(os.getpid(), signal.SIGINT)
        return True

    stopper = when_training([tmp_path / "sweep" / "0"], interrupt)
    status, _ = sweep("seed=0,1", "rounds=500")
    stopper.join()
    assert status == 130
    deadline = time.monotonic() + 30
    while os.path.exists(f"/proc/{process[0]}") and time.monotonic() < deadline:
        time.sleep(0.05)
    assert not os.path.exists(f"/proc/{process[0]}")
    assert not list((tmp_path / "sweep").glob("*/summary.json"))


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["privacy.epsilon=1,-1"], "trial 1: privacy.epsilon: -1.0 is not allowed"),
        (["seed=0,1", "hydra.launcher.num_cpus=99"], "a trial needs 99 CPUs"),
        (["seed=0,1", "+hydra.launcher.retry=2"], "did you mean 'retries'"),
        (["seed=0,1", "hydra.launcher.retries=-1"], "hydra.launcher.retries: -1 is not allowed"),
        (["seed=0,1", "hydra.launcher.retries=1.5"], "hydra.launcher.retries: 1.5 is not allowed"),
        (["seed=0,1", "hydra.launcher.num_cpus=many"], "hydra.launcher.num_cpus: 'many' is not"),
        (["seed=0,1", "hydra.launcher.num_gpus=true"], "hydra.launcher.num_gpus: True is not"),
        (["seed=0,1", "hydra.launcher.reuse=1"], "hydra.launcher.reuse: 1 is not allowed"),
    ],
)
def test_what_cannot_work_is_told_before_any_trial(sweep, given, message, tmp_path):
    status, told = sweep(*given)
    assert status == 2
    assert message in told.err
    assert not list((tmp_path / "sweep").glob("*/config.yaml"))
