"""The ServerApp and ClientApp in Flower's own runtime, and clients with data of their own."""

import json
import os
import re
import shlex
import subprocess
import sys
import tomllib
from functools import partial
from pathlib import Path

import pytest
from flwr.app import ConfigRecord, Context, Message, RecordDict

from fedsvd.client.worker import build_worker, deal
from fedsvd.engines.base import claim_identity
from fedsvd.engines.flower import simulated_nodes
from fedsvd.engines.inline import InlineGrid
from fedsvd.errors import InputError
from fedsvd.experiment import make_grid, prepare
from fedsvd.flower_app import _simulate, check_server_only, client_app, compose, simulated
from fedsvd.node.app import SIMULATION, simulates
from fedsvd.node.mods import find_mod, with_mods
from fedsvd.node.proposal import GROUPS, NUMBERS, overrides_in
from fedsvd.records import BUDGET, CONFIG
from fedsvd.rounds.attempt import one_round
from fedsvd.run import config_folder
from fedsvd.strategies.build import build_strategy
from fedsvd.strategies.pairs import check_pair
from tests.conftest import TINY, compose_settings

ROOT = Path(__file__).resolve().parents[1]
OWN = [
    "partition=own", "data.filter=null", "privacy.secure_noise=true", "privacy.diagnostics=false",
    "clients.number=3", "clients.per_round=3",
]  # fmt: skip
LABELS = ["data.labels=[bad,good]"]


def test_flowers_simulation_gives_the_bits_and_the_ledger_of_one_process(tmp_path):
    given = [*TINY, "engine.threads=1", "rounds=2"]
    done = subprocess.run(
        ["bash", str(ROOT / "scripts" / "flwr_simulation.sh"), str(tmp_path / "run"), *given],
        capture_output=True, text=True, timeout=300, check=False,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1", "MOST_SECONDS": "240",
             "PATH": f"{Path(sys.executable).parent}:{os.environ['PATH']}"},
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    summary = json.loads((tmp_path / "run" / "summary.json").read_text())
    settings = compose_settings(*given)
    run = prepare(settings, build_strategy(settings.strategy))
    for number in (1, 2):
        one_round(run, number)
    assert summary["state_digest"] == run.state.digest()
    ledger = json.loads((tmp_path / "run" / "privacy.json").read_text())
    assert ledger.pop("published")  # the second figure, which is the finished run's
    assert ledger == json.loads(json.dumps(run.ledger.as_dict()))
    assert sum(client["steps"] for client in ledger["clients"]) == 6


@pytest.fixture
def folders(tmp_path):
    """Three clients' texts and the server's."""
    for k in range(3):
        (tmp_path / f"client{k}").mkdir()
        lines = [f"client {k} says {i},{('bad', 'good')[i % 2]}" for i in range(12 + k)]
        (tmp_path / f"client{k}" / "train.csv").write_text("\n".join(["text,label", *lines]))
    (tmp_path / "server").mkdir()
    for part in ("validation", "test"):
        lines = [f"{part} {i},{('bad', 'good')[i % 2]}" for i in range(6)]
        (tmp_path / "server" / f"{part}.csv").write_text("\n".join(["text,label", *lines]))
    return tmp_path


def own(folders, who, *more):
    named = ["data.labels=[bad,good]", "data.label_type=names"]
    given = [*OWN, *named, f"data.path={folders / who}", *more]
    return compose_settings(*given)


def test_a_node_trains_on_all_of_its_folder_and_the_server_on_nothing(folders):
    for k in range(3):
        task, parts = deal(own(folders, f"client{k}", f"partition.holder={k}"))
        assert [len(p) for p in parts] == [12 + k if j == k else 0 for j in range(3)]
        assert all(task.texts[i][0].startswith(f"client {k}") for i in parts[k])
    task, parts = deal(own(folders, "server"))
    assert [len(p) for p in parts] == [0, 0, 0]
    assert (len(task.validation), len(task.test)) == (6, 6)
    few = ["partition.holder=0", "partition.min_examples=20"]
    assert len(deal(own(folders, "client0", *few))[1][0]) == 12  # the number is nobody's business
    with pytest.raises(InputError, match=r"partition\.min_examples: 20 is not allowed"):
        deal(own(folders, "client0", *few, "privacy=none"))


@pytest.mark.parametrize(
    ("override", "message"),
    [
        ("privacy.secure_noise=false", "the server knows the seed"),
        ("privacy.diagnostics=true", "outside the guarantee"),
        ("privacy.public_counts=true", "public_counts false"),
        ("data.labels=null", "the list of labels"),
    ],
)
def test_what_would_void_the_guarantee_of_a_deployment_is_refused(folders, override, message):
    with pytest.raises(InputError, match=message):
        own(folders, "server", override)


def test_own_data_are_no_public_texts_for_an_adapter_to_look_at(folders):
    given = ["adapter=eva", "training.precision=fp32", "privacy.accountant=rdp"]
    settings = own(folders, "server", *given)
    with pytest.raises(InputError, match="eva starts from public texts, and with partition=own"):
        check_pair(settings, build_strategy(settings.strategy), config_folder())
    with pytest.raises(InputError, match="Eva needs public texts to look at"):
        build_worker(own(folders, "client0", "partition.holder=0", *given))


def test_own_data_needs_a_deployment(folders):
    with pytest.raises(InputError, match="needs a deployment"):
        make_grid(own(folders, "server"), None)


@pytest.mark.parametrize("key", ["seed=1", "data.labels=[good,bad]", "strategy=ffa", "rounds=2"])
def test_what_nodes_need_too_is_not_for_the_server_alone(key):
    given = [*OWN, "data.labels=[bad,good]"]
    check_server_only(
        compose(given), compose([*given, "data.path=/x", "device=cpu", "data.limit=5"])
    )
    name = re.escape(key.partition("=")[0].replace("strategy", "strategy._target_"))
    with pytest.raises(InputError, match=rf"server: {name} concerns the nodes too"):
        check_server_only(compose(given), compose([*given, key]))


def test_a_simulation_has_no_clients_with_data_of_their_own():
    with pytest.raises(InputError, match="needs a deployment"):
        simulated(Context(1, 0, {}, RecordDict(), {"overrides": " ".join([*OWN, *LABELS])}))


def test_the_common_settings_have_keys_of_their_own():
    """Both Apps have them all; what has a key counts before the same in overrides."""
    apps = [tomllib.loads((ROOT / name).read_text()) for name in
            ("pyproject.toml", "flower/pyproject.toml")]  # fmt: skip
    known = [app["tool"]["flwr"]["app"]["config"] for app in apps]
    assert known[0] == known[1]
    assert set(known[0]) >= {*GROUPS, *NUMBERS, "overrides", "server", "mods"}
    assert apps[0]["project"]["version"] == apps[1]["project"]["version"]
    assert apps[1]["project"]["dependencies"] == []
    assert not apps[1]["project"].get("optional-dependencies")  # uv would resolve these too
    assert overrides_in(known[1]) == ["+experiment=quickstart"]
    given = known[1] | {
        "experiment": "dp_eps1", "rounds": 2, "lr": 1e-05,
        "overrides": "+experiment=no_dp rounds=9 a=b",
    }  # fmt: skip
    assert overrides_in(given) == ["+experiment=dp_eps1", "rounds=2", "training.lr=1e-05", "a=b"]
    for wrong in ({"strategy": "a=b"}, {"rounds": "2"}, {"seed": True}, {"model": "../x"}):
        with pytest.raises(InputError, match=f"{next(iter(wrong))}: "):
            overrides_in(known[1] | wrong)


@pytest.mark.parametrize(("nodes", "per_round"), [(2, 2), (10, 3)])
def test_a_simulation_has_a_client_for_every_node(nodes, per_round):
    told = {"overrides": " ".join(TINY)}
    node = {"partition-id": 0, "num-partitions": nodes}
    found = simulated(Context(1, 0, node, RecordDict(), told)).clients
    assert (found.number, found.per_round) == (nodes, per_round)
    given = {"overrides": " ".join([*TINY, "clients.number=5"])}
    assert simulated(Context(1, 0, node, RecordDict(), given)).clients.number == 5


def test_the_server_learns_how_many_nodes_a_simulation_has():
    actor = {"__name__": SIMULATION}
    exec("def call(app, *args): return app(*args)", actor)
    assert simulated_nodes(InlineGrid(partial(actor["call"], client_app), 5), 1.0) == 5
    assert simulated_nodes(InlineGrid(client_app, 5), 1.0) is None  # nodes of a deployment
    nobody = InlineGrid(client_app, 5)
    nobody.invite([])
    assert simulated_nodes(nobody, 0.1) is None


def renamed(message, context, call_next):
    reply = call_next(message, context)
    return [*reply, "renamed"]


def test_mods_stand_around_a_client():
    """The first is outermost, as in Flower's own ClientApp."""
    counted = find_mod("mods", "flwr.clientapp.mod.message_size_mod")
    assert callable(counted)
    first, second = renamed, lambda m, c, call: [*call(m, c), "second"]
    assert with_mods(lambda m, c: ["app", m, c], [first, second])(1, 2) == [
        "app", 1, 2, "second", "renamed",
    ]  # fmt: skip
    assert find_mod("mods", f"{__name__}.renamed") is renamed
    for path, message in (
        ("flwr.clientapp.mod.LocalDpMod", "it must be a function"),
        ("flwr.clientapp.mod.message_sise_mod", "did you mean 'message_size_mod'"),
        ("no.such.mod", "cannot be imported"),
    ):
        with pytest.raises(InputError, match=message):
            find_mod("mods", path)


def test_a_simulated_client_answers_through_the_runs_mods(monkeypatch):
    answered = lambda message, context: [message]  # noqa: E731
    monkeypatch.setattr("fedsvd.flower_app.make_client_app", lambda settings: answered)
    node = {"partition-id": 0, "num-partitions": 6}
    told = {"overrides": " ".join(TINY), "mods": f"{__name__}.renamed"}
    assert _simulate("it", Context(1, 0, node, RecordDict(), told)) == ["it", "renamed"]
    with pytest.raises(InputError, match=r"mods: 'nowhere\.mod' cannot be imported"):
        _simulate("it", Context(1, 0, node, RecordDict(), told | {"mods": "nowhere.mod"}))


def test_a_simulated_client_takes_the_token_budget_from_the_message(monkeypatch):
    monkeypatch.setattr(
        "fedsvd.flower_app.make_client_app", lambda settings: lambda *_: settings.training.budget
    )
    auto = f"{' '.join(TINY)} training.microbatch_tokens=auto"
    context = Context(
        1, 0, {"partition-id": 0, "num-partitions": 6}, RecordDict(), {"overrides": auto}
    )
    claim_identity()
    content = RecordDict({CONFIG: ConfigRecord({BUDGET: 2048})})
    assert _simulate(Message(content, 1, "train"), context) == 2048
    with pytest.raises(KeyError, match=BUDGET):
        _simulate(Message(RecordDict({CONFIG: ConfigRecord({})}), 1, "train"), context)


@pytest.mark.parametrize("target", ["fedsvd.strategies.FedSVD", "flwr.serverapp.strategy.FedAvg"])
def test_every_message_of_a_run_has_the_token_budget(tiny_inputs, target):
    given = [*tiny_inputs, f"strategy._target_={target}"]
    told = {"overrides": shlex.join([*given, "training.microbatch_tokens=auto"])}

    def app(message, context):
        own = Context(1, context.node_id, context.node_config, context.state, told)
        return _simulate(message, own)

    grid = InlineGrid(app, 6)
    grid.composes = True
    settings = compose_settings(*given, "training.microbatch_tokens=auto")
    run = prepare(settings, build_strategy(settings.strategy), grid)
    assert run.orders == {BUDGET: 768}
    assert one_round(run, 1)["failed"] == {}


def test_only_the_caller_makes_a_simulation(monkeypatch):
    """The module's name stands for Flower's actor, whose frame is on the stack in a simulation."""
    monkeypatch.delenv("FEDSVD_NODE_POLICY", raising=False)
    actor = {"__name__": SIMULATION}
    exec("def call(f, *args): return f(*args)", actor)
    told = {"overrides": "", "simulation": True}
    context = Context(1, 0, {"partition-id": 0}, RecordDict(), told)
    assert actor["call"](simulates, context)
    assert not simulates(context)
    assert not actor["call"](simulates, Context(1, 0, {"policy": "/p.yaml"}, RecordDict(), told))
