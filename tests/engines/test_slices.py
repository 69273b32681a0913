"""Waits on a real cluster: a signal ends them, and they say what they wait for."""

import os
import re
import signal
import sys
import threading
import time
from functools import partial
from pathlib import Path

import numpy as np
import pytest
import ray
from ray._private import worker as driver

from fedsvd import interrupt, waiting
from fedsvd.engines.cluster import SOCKET, check_engine, connect
from fedsvd.engines.ray import RayGrid
from fedsvd.engines.slices import first_ready, free, value_of
from fedsvd.errors import InputError
from fedsvd.run import main
from fedsvd.settings import EngineSettings
from fedsvd.sweep.launch import _awaited
from fedsvd.sweep.progress import State, Trial
from tests.clusters import two_nodes
from tests.conftest import TINY, compose_settings
from tests.engines.apps import adding_app, sleeping_app
from tests.engines.test_ray import messages

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def cluster():
    with two_nodes() as nodes:
        yield nodes


@ray.remote
class Tenant:
    """Somebody else's work, which holds a CPU."""

    def here(self):
        return True


@pytest.fixture
def taken(cluster):
    """All CPUs of the cluster are held by others; the function gives them back."""
    tenants = [Tenant.options(num_cpus=1).remote() for _ in range(2)]
    ray.get([tenant.here.remote() for tenant in tenants])
    deadline = time.monotonic() + 30
    while ray.available_resources().get("CPU") and time.monotonic() < deadline:
        time.sleep(0.1)

    def leave():
        while tenants:
            ray.kill(tenants.pop())

    yield leave
    leave()


def test_nothing_waits_for_ray_but_in_slices():
    root = Path(__file__).parents[2] / "fedsvd"
    for path in sorted(root.rglob("*.py")):
        found = set(re.findall(r"\bray\.(?:get|wait)\(", path.read_text()))
        assert not found or path.name == "slices.py", path


def later(*steps):
    """Do things in a thread, each after some seconds."""

    def work():
        for seconds, act in steps:
            time.sleep(seconds)
            act()

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    return thread


def press(signum=signal.SIGINT):
    os.kill(os.getpid(), signum)


def test_a_second_signal_ends_a_round_on_ray_at_once(cluster, capfd):
    second = signal.SIGTERM  # where the first is SIGINT
    grid = RayGrid(partial(sleeping_app, 40.0), 2, EngineSettings("ray"), [1.0] * 2)
    pressed = []

    def both():
        deadline = time.monotonic() + 60
        while not grid._busy and time.monotonic() < deadline:
            time.sleep(0.05)
        press()
        time.sleep(1.5)
        pressed.append(time.monotonic())
        press(second)

    try:
        with interrupt.listening():
            interrupt.training(True)
            later((0, both))
            with pytest.raises(interrupt.Interrupted) as caught:
                grid.send_and_receive(messages([0, 1]))
        assert time.monotonic() - pressed[0] < 5
        assert caught.value.status == 128 + second
    finally:
        interrupt.training(False)
        grid.close()
    assert "finishing the round; once more stops at once" in capfd.readouterr().err


def test_a_cluster_whose_cpus_are_taken_is_waited_for_with_a_line(taken, monkeypatch, capfd):
    monkeypatch.setattr(waiting, "FIRST", 0.6)
    grid = RayGrid(adding_app, 2, EngineSettings("ray"), [1.0] * 2)
    later((4.0, taken))
    replies = list(grid.send_and_receive(messages([0, 1])))
    np.testing.assert_allclose(replies[1].content["arrays"]["x"].numpy(), 1)
    grid.close()
    lines = capfd.readouterr().err.splitlines()
    wanted = "s for a Ray worker of 1 CPUs and 0 GPUs to start; 0 of 2 CPUs of the Ray cluster free"
    told = [line for line in lines if wanted in line]
    assert told
    assert len(lines) <= 5  # ever less often
    assert told[0].startswith("waiting since ")


def test_one_signal_ends_the_wait_for_a_worker(taken):
    grid = RayGrid(adding_app, 2, EngineSettings("ray"), [1.0] * 2)
    try:
        with interrupt.listening():
            later((1.0, press))
            began = time.monotonic()
            with pytest.raises(interrupt.Interrupted):
                grid.send_and_receive(messages([0]))
        assert time.monotonic() - began < 5
    finally:
        grid.close()


def test_a_client_that_takes_long_is_named(cluster, monkeypatch, capfd):
    monkeypatch.setattr(waiting, "FIRST", 0.6)
    grid = RayGrid(partial(sleeping_app, 2.0), 3, EngineSettings("ray", workers=1), [1.0] * 3)
    list(grid.send_and_receive(messages([1])))
    grid.close()
    assert "s for the work of clients 1, on 1 workers\n" in capfd.readouterr().err


def test_a_sweep_whose_cluster_is_taken_says_so_and_hears_a_signal(
    taken, tmp_path, monkeypatch, capfd
):
    monkeypatch.setattr(waiting, "FIRST", 0.6)
    monkeypatch.setattr(sys, "argv", ["fedsvd"])
    monkeypatch.chdir(tmp_path)

    def when_told():
        deadline = time.monotonic() + 60
        while not heard and time.monotonic() < deadline:
            time.sleep(0.1)
        press()

    heard = []
    real = waiting.complain
    monkeypatch.setattr(waiting, "complain", lambda text: (heard.append(text), real(text)))
    later((0, when_told))
    assert main(["-m", "hydra/launcher=ray", "hydra.sweep.dir=s", *TINY, "seed=0,1"]) == 130
    assert "for a trial to start; 0 of 2 CPUs of the Ray cluster free" in heard[0]
    assert "for a trial to start" in capfd.readouterr().err


def test_a_sweep_says_which_trials_it_waits_for(cluster, tmp_path):
    told = [Trial(k, tmp_path, {}, [], compose_settings("rounds=2")) for k in range(3)]
    assert _awaited(told).startswith("a trial to start; ")
    told[0].state = told[2].state = State.RUNNING
    assert _awaited(told).startswith("a round of trials 0, 2, whose trial.log tells more; ")


@ray.remote(num_cpus=0)
def numbers(n):
    return np.arange(n)


def test_values_that_are_slow_to_travel_arrive(cluster, monkeypatch):
    monkeypatch.setattr("fedsvd.engines.slices.SLICE", 1e-4)
    reference = numbers.remote(3_000_000)
    while not first_ready([reference]):
        pass
    assert value_of(reference)[-1] == 2_999_999
    assert free().startswith("2 of 2 CPUs")


def test_the_cluster_here_can_be_joined_and_one_elsewhere_not(cluster, monkeypatch):
    from ray._private import services

    socket = driver._global_node.plasma_store_socket_name
    folder = socket[: socket.index("/ray/session_")]
    assert len(socket) <= len(folder + SOCKET)
    ray.shutdown()
    try:
        check_engine(EngineSettings("ray", address=cluster.address))
        with monkeypatch.context() as patch:
            patch.setattr(services, "find_node_ids", set)
            with pytest.raises(InputError, match="no node of this cluster runs on this machine"):
                check_engine(EngineSettings("ray", address=cluster.address))
    finally:
        assert connect(cluster.address) is False
    assert ray.is_initialized()
