"""The ServerApp and ClientApp in Flower's own runtime, and clients with data of their own."""

import json
import os
import re
import subprocess
import sys
from pathlib import Path

import pytest
from flwr.app import Context, RecordDict

from fedsvd.client.worker import build_worker, deal
from fedsvd.errors import InputError
from fedsvd.experiment import make_grid, prepare
from fedsvd.flower_app import check_server_only, compose, simulated
from fedsvd.node.app import SIMULATION, simulates
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
