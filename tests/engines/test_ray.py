"""The Ray engine on real clusters of this machine: one started here, and one of two nodes joined."""

from functools import partial

import numpy as np
import pytest
import ray
from flwr.app import Array, ArrayRecord, Message, RecordDict

from fedsvd.engines.cluster import room_for
from fedsvd.engines.ray import RayGrid
from fedsvd.errors import InputError
from fedsvd.experiment import make_grid, prepare
from fedsvd.rounds.attempt import one_round
from fedsvd.rounds.averaging import include, model_state
from fedsvd.settings import EngineSettings
from fedsvd.strategies.build import build_strategy
from tests.clusters import two_nodes
from tests.conftest import TINY, compose_settings
from tests.engines.apps import adding_app

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


@pytest.fixture(scope="module")
def cluster():
    """Two nodes of one CPU each, that the engine joins and must leave running."""
    with two_nodes() as nodes:
        yield nodes


@pytest.fixture
def small(tiny_inputs):
    return [given for given in tiny_inputs if given != "partition=iid"]  # TINY deals otherwise


def messages(clients):
    content = RecordDict({"arrays": ArrayRecord({"x": Array(np.zeros(3))})})
    return [Message(content, k, "train") for k in clients]


def test_clients_answer_in_order_from_workers_on_both_nodes(cluster):
    settings = EngineSettings("ray")
    assert room_for(settings) == 2
    grid = RayGrid(partial(adding_app, fail=2), 6, settings, [1.0] * 6)
    for round in (1, 2):
        replies = list(grid.send_and_receive(messages([0, 2, 5])))
        assert [r.metadata.src_node_id for r in replies] == [0, 2, 5]
        assert replies[1].has_error()
        assert "RuntimeError: no" in replies[1].error.reason
        for k, reply in ((0, replies[0]), (5, replies[2])):
            np.testing.assert_allclose(reply.content["arrays"]["x"].numpy(), k)
            assert reply.content["metrics"]["seen"] == round  # state lives across rounds
    processes: set[int] = set()
    for _ in range(10_000):  # until the second worker is up as well
        answers = grid.send_and_receive(messages([0, 1, 3, 4, 5]))
        processes |= {r.content["metrics"]["process"] for r in answers}
        if len(processes) == 2:
            break
    assert len(processes) == 2
    again = {r.content["metrics"]["process"] for r in grid.send_and_receive(messages([0, 1, 3]))}
    assert again <= processes  # workers are kept
    grid.close()
    assert ray.is_initialized()  # not ours, so it goes on
    assert ray.cluster_resources()["CPU"] == 2


def test_the_content_of_a_round_is_put_into_the_object_store_once(cluster, monkeypatch):
    grid, put, given = RayGrid(adding_app, 4, EngineSettings("ray"), [1.0] * 4), ray.put, []
    monkeypatch.setattr(ray, "put", lambda value: (given.append(value), put(value))[1])
    sent = messages([0, 1, 2, 3])
    assert not any(reply.has_error() for reply in grid.send_and_receive(sent))
    assert given == [sent[0].content]
    grid.close()


def test_a_dead_worker_is_replaced_and_its_client_answers(cluster, tmp_path):
    make = partial(adding_app, die=1, marks=str(tmp_path))
    grid = RayGrid(make, 4, EngineSettings("ray"), [1.0] * 4)
    replies = list(grid.send_and_receive(messages([0, 1, 2, 3])))
    assert (tmp_path / "died").exists()
    for k, reply in enumerate(replies):
        np.testing.assert_allclose(reply.content["arrays"]["x"].numpy(), k)
    grid.close()


def test_a_cluster_too_small_for_a_worker_is_refused_at_once(cluster):
    with pytest.raises(InputError, match=r"a worker needs 3 CPUs.*engine\.num_cpus"):
        RayGrid(adding_app, 2, EngineSettings("ray", num_cpus=3), [1.0] * 2)
    with pytest.raises(InputError, match=r"1 GPUs"):
        RayGrid(adding_app, 2, EngineSettings("ray", num_gpus=1), [1.0] * 2)
    assert room_for(EngineSettings("ray", workers=1)) == 1


def test_the_longest_go_first(cluster):
    grid = RayGrid(adding_app, 4, EngineSettings("ray", workers=1), [3.0, 1.0, 7.0, 2.0])
    sent = []
    real = grid._send

    def record(given, content, positions):
        sent.append([m.metadata.dst_node_id for m in given])
        real(given, content, positions)

    grid._send = record
    list(grid.send_and_receive(messages([0, 1, 2, 3])))
    assert sent[0] == [2]  # before anything is known of how long it takes
    assert [client for call in sent for client in call] == [2, 0, 3, 1]
    grid.close()


def test_clients_of_short_work_go_several_to_a_call(cluster, tmp_path):
    grid = RayGrid(adding_app, 6, EngineSettings("ray", workers=2), [1.0] * 6)
    calls, real = [], grid._send

    def record(given, content, positions):
        calls.append(len(given))
        real(given, content, positions)

    grid._send = record
    while len(grid._idle) < 2:  # until both workers are up
        list(grid.send_and_receive(messages(range(6))))
    calls.clear()
    replies = list(grid.send_and_receive(messages(range(6))))
    assert calls == [3, 3]
    for k, reply in enumerate(replies):
        np.testing.assert_allclose(reply.content["arrays"]["x"].numpy(), k)
    calls.clear()
    contents = messages([0, 1]) + messages([2, 3])  # messages of two kinds are not mixed
    list(grid.send_and_receive(contents))
    assert calls == [2, 2]
    grid._pace["train"] = 1.0  # long work goes alone
    calls.clear()
    list(grid.send_and_receive(messages(range(4))))
    assert calls[:2] == [1, 1]
    grid.close()


def test_a_call_of_several_that_kills_its_worker_is_made_again_one_by_one(cluster, tmp_path):
    make = partial(adding_app, die=1, marks=str(tmp_path))
    grid = RayGrid(make, 6, EngineSettings("ray", workers=1), [1.0] * 6)
    list(grid.send_and_receive(messages([0, 2, 3])))
    calls, real = [], grid._send

    def record(given, content, positions):
        calls.append([m.metadata.dst_node_id for m in given])
        real(given, content, positions)

    grid._send, grid._pace["train"] = record, 1e-4
    replies = list(grid.send_and_receive(messages([0, 1, 2, 3, 4, 5])))
    assert (tmp_path / "died").exists()
    assert sorted(calls[0]) == [0, 1, 2, 3, 4, 5]
    assert sorted(c for call in calls[1:] for c in call) == [0, 1, 2, 3, 4, 5]
    assert all(len(call) == 1 for call in calls[1:])
    for k, reply in enumerate(replies):
        np.testing.assert_allclose(reply.content["arrays"]["x"].numpy(), k)
        # What the dead worker's clients kept is as it was before the call.
        assert reply.content["metrics"]["seen"] == (2 if k in (0, 2, 3) else 1)
    grid.close()


def digest(*overrides, kill=False):
    settings = compose_settings(*TINY, *overrides)
    run = prepare(settings, build_strategy(settings.strategy))
    for number in (1, 2):
        if kill and number == 2:
            ray.kill(run.grid._idle[0])
        one_round(run, number)
    run.grid.close()
    return run.state.digest(), run.ledger.as_dict()


def test_the_same_bits_as_inline_also_after_a_worker_was_killed(cluster, monkeypatch):
    expected = digest("engine.threads=1")
    halves = ["engine.workers=2", "engine.num_cpus=0.5"]
    assert digest("engine=ray", *halves, kill=True) == expected
    monkeypatch.setattr("fedsvd.engines.ray.TOGETHER", 1e9)  # all clients of round 2 in one call
    assert digest("engine=ray", "engine.workers=1") == expected


def test_the_same_bits_from_what_every_worker_keeps(cluster, small):
    given = [*small, "adapter.layers=1"]
    expected = digest(*given, "engine.threads=1")
    assert digest(*given, "engine=ray", "engine.workers=2", "engine.threads=1") == expected
    settings = compose_settings(*TINY, *given, "engine.threads=1")
    assert prepare(settings, build_strategy(settings.strategy)).worker.kept is not None


@pytest.mark.parametrize(
    "overrides",
    [["strategy=prism"], ["strategy=dp_fedadamw", "training.optimizer=adamw", "training.lr=1e-3"]],
    ids=lambda o: o[0],
)
def test_the_same_bits_where_clients_take_steps_of_their_own(cluster, small, overrides):
    expected = digest(*small, *overrides)
    assert digest(*small, "engine=ray", "engine.workers=2", *overrides) == expected


def test_sides_that_take_turns_are_shrunk_and_averaged_alike(cluster, small):
    found = []
    for engine in (["engine.threads=1"], ["engine=ray", "engine.workers=2"]):
        settings = compose_settings(
            *TINY,
            *small,
            *engine,
            "strategy=fedsvd_alternate",
            "strategy.strength=0.7",
            "averaging=ema",
            "start=public",
            "start.steps=2",
            "data.public=8",
        )
        run = prepare(settings, build_strategy(settings.strategy))
        run.rounds = settings.rounds
        for number in (1, 2):
            assert one_round(run, number)["failed"] == {}
            include(run)
        run.grid.close()
        found.append((run.state.digest(), model_state(run).digest(), run.noise))
        assert found[-1][0] != found[-1][1]
    assert found[0] == found[1]


def test_a_local_ray_is_started_and_stopped(cluster):
    # Last in the module: the fixture's connection is given up for it.
    ray.shutdown()
    settings = compose_settings(*TINY, "engine=ray")
    worker = prepare(compose_settings(*TINY), build_strategy(settings.strategy)).worker
    grid = make_grid(settings, worker)
    assert ray.is_initialized()
    grid.close()
    assert not ray.is_initialized()
    with pytest.raises(InputError, match=r"engine\.address: '127\.0\.0\.1:1'"):
        RayGrid(adding_app, 2, EngineSettings("ray", address="127.0.0.1:1"), [1.0] * 2)
