"""The policy's file, the account's file and the owner's commands."""

import multiprocessing
import os
import subprocess
import sys
from pathlib import Path

import pytest

from fedsvd.composing import compose
from fedsvd.config import build
from fedsvd.errors import InputError
from fedsvd.node import account
from fedsvd.node.__main__ import main
from fedsvd.node.account import Charge
from fedsvd.node.policy import Policy, policy_path, read_policy
from fedsvd.node.proposal import OPEN, OWN_BUSINESS, plain
from fedsvd.node.refusals import CODES, Refusal, Refused
from fedsvd.node.rules import installed_strategies
from fedsvd.privacy.accounting import epsilon
from fedsvd.settings import Settings
from tests.node.owner import HONEST, make_owner

ROOT = Path(__file__).resolve().parents[2]
GOOD = {
    "id": "reviews",
    "ledger": "/srv/ledger.json",
    "data": {"path": "/srv/rows", "labels": ["bad", "good"]},
    "privacy": {"epsilon": 3.0, "delta": 1e-5},
}


def changed(**changes):
    values = {k: dict(v) if isinstance(v, dict) else v for k, v in GOOD.items()}
    for key, value in changes.items():
        section, _, name = key.partition("__")
        if name:
            values[section] = {**values.get(section, {}), name: value}
        else:
            values[section] = value
    return values


def test_the_defaults_of_a_policy_protect():
    policy = build(Policy, GOOD, "")
    assert policy.privacy.unit == "example"
    assert policy.privacy.secure_noise
    assert not policy.privacy.diagnostics
    assert list(policy.models) == ["sentence-transformers/all-MiniLM-L6-v2"]


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"privcay": {}}, r"privcay: .*\(did you mean 'privacy'"),
        ({"privacy__epsilonn": 1}, r"privacy\.epsilonn: .*\(did you mean 'epsilon'"),
        ({"limits__round": 1}, r"limits\.round: .*\(did you mean 'rounds'"),
        ({"privacy__epsilon": None}, r"privacy\.epsilon: None is not allowed; it must be given"),
        ({"privacy__delta": 1}, r"privacy\.delta"),
        ({"privacy__epsilon": float("inf")}, r"privacy\.epsilon"),
        ({"privacy__secure_noise": False}, "the server chooses the seed"),
        ({"privacy__diagnostics": True}, "outside the guarantee"),
        ({"privacy__unit": "client"}, "'client' is not allowed"),
        ({"privacy__noise_floor": 0}, r"privacy\.noise_floor"),
        ({"data__path": "rows"}, r"data\.path: 'rows' is not allowed; it must be an absolute path"),
        ({"data__labels": ["bad", "bad"]}, r"data\.labels"),
        ({"ledger": None}, "ledger: None"),
        ({"ledger": "ledger.json"}, "ledger: .*absolute"),
        ({"models": {}}, "models: "),
        ({"models": {"tiny": "model"}}, r"models\.tiny: 'model' is not allowed"),
        ({"models": {"tiny": "package:os/../x"}}, r"models\.tiny"),
        ({"models": {"tiny": 3}}, r"models\.tiny"),
        ({"trains": ["C"]}, "trains: 'C'"),
        ({"adapters": ["lorra"]}, "did you mean 'lora'"),
        ({"id": " "}, "id: "),
        ({"limits__rounds": 0}, r"limits\.rounds"),
    ],
)
def test_a_wrong_policy_is_refused_with_its_key(change, message):
    with pytest.raises(InputError, match=message):
        build(Policy, changed(**change), "")


def test_every_setting_is_open_or_closed_on_purpose():
    """A key that a later version adds is closed to servers until somebody decides."""
    closed = {
        "data": {
            "name", "path", "package", "file", "filter", "hub", "hub_config", "text", "label",
            "label_type", "messages", "endings", "splits", "validation", "test", "limit",
            "limit_evaluation", "id", "client", "clients", "public",
        },
        "partition": {
            "name", "alpha", "min_examples", "draws", "holder", "column", "ids", "shards", "small",
        },
        "attack": {"name", "clients", "scale", "std"},
        "privacy": {"accounting"},  # a published recipe's noise exceeds the budget that it names
    }  # fmt: skip
    for section in ("clients", "training", "model", "adapter", *closed):
        kind = Settings.__dataclass_fields__[section].type
        fields = set(kind.__dataclass_fields__) - {"options", "target"}
        known = OPEN.get(section, set()) | closed.get(section, set())
        assert fields <= known, (section, fields - known)
    top = set(Settings.__dataclass_fields__) - OPEN[""] - OWN_BUSINESS - set(closed)
    assert top - {"task"} == {"clients", "training", "model", "adapter", "strategy"}


def test_only_our_own_configurations_interpolate():
    text = repr(plain(compose([o for o in HONEST if "label_texts" not in o])))
    assert "${" not in text


def test_a_policy_that_others_can_write_is_refused(tmp_path):
    path = tmp_path / "policy.json"
    path.write_text('{"id": "x", "data": {"path": "/a", "labels": ["a", "b"]}, "ledger": "/l",'
                    ' "privacy": {"epsilon": 1, "delta": 1e-05}}')  # fmt: skip
    path.chmod(0o640)
    assert read_policy(path).privacy.epsilon == 1
    path.chmod(0o620)
    with pytest.raises(InputError, match="mode 0620 lets others in; chmod go-w"):
        read_policy(path)
    with pytest.raises(InputError, match="cannot be read"):
        read_policy(tmp_path / "none.yaml")
    for text in ("[1, 2]", "a: [", "id: 3\nid: 4", "\xff", "3"):
        path.write_text(text, encoding="latin-1")
        path.chmod(0o600)
        with pytest.raises(InputError, match=r"policy\.json: is not"):
            read_policy(path)


def test_where_a_policy_is_comes_from_the_node_alone(monkeypatch):
    monkeypatch.delenv("FEDSVD_NODE_POLICY", raising=False)
    assert policy_path({}) is None
    assert policy_path({"policy": "/a.yaml"}) == Path("/a.yaml")
    monkeypatch.setenv("FEDSVD_NODE_POLICY", "/b.yaml")
    assert policy_path({}) == Path("/b.yaml")
    with pytest.raises(InputError, match="absolute"):
        policy_path({"policy": "a.yaml"})


def a_charge(data="a", content="0", sigma=1.0, rate=0.1, steps=10, run="1"):
    return Charge(data, content * 64, sigma, rate, steps, run, 1, "2026-01-01T00:00:00+00:00")


def test_charges_are_related_by_name_or_by_content_however_far():
    chain = [a_charge("a", "0"), a_charge("b", "0"), a_charge("b", "1"), a_charge("c", "1")]
    apart = a_charge("d", "9")
    for data, content in (("a", "7" * 64), ("x", "1" * 64), ("c", "0" * 64)):
        assert account.related([*chain, apart], data, content) == chain
    assert account.related([*chain, apart], "d", "9" * 64) == [apart]
    assert account.related([*chain, apart], "e", "8" * 64) == []


def test_different_events_are_composed(tmp_path):
    path = tmp_path / "ledger.json"
    account.create(path)
    new = [a_charge(sigma=1.0), a_charge(sigma=2.0, rate=1.0, steps=1), a_charge(steps=3)]
    for one in new:
        spent = account.charge(path, one, 10.0, 1e-5, "rdp")
    assert spent == epsilon([(1.0, 0.1, 13), (2.0, 1.0, 1)], 1e-5, "rdp")
    assert list(account.read(path)) == new
    with pytest.raises(Refused) as refused:
        account.charge(path, a_charge(), spent, 1e-5, "rdp")
    assert refused.value.kind is Refusal.SPENT
    assert list(account.read(path)) == new
    with pytest.raises(InputError, match="is there already"):
        account.create(path)


def _charges(path):
    for _ in range(10):
        account.charge(path, a_charge(run=str(os.getpid())), 100.0, 1e-5, "rdp")


def test_processes_that_charge_at_once_lose_nothing(tmp_path):
    path = tmp_path / "ledger.json"
    account.create(path)
    spawned = multiprocessing.get_context("spawn")
    processes = [spawned.Process(target=_charges, args=(path,)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(120)
    assert [p.exitcode for p in processes] == [0, 0]
    assert len(account.read(path)) == 20


def test_the_types_are_few_and_their_codes_are_not_flowers():
    assert [k.value for k in Refusal] == [
        "no-policy", "not-allowed", "unusable-message", "budget-spent", "not-available",
    ]  # fmt: skip
    assert list(CODES.values()) == [100, 101, 102, 103, 104]


def test_the_owners_commands(tmp_path, capsys):
    owner = make_owner(tmp_path)
    owner.ledger.unlink()
    assert main(["show", str(owner.policy)]) == 2
    assert "cannot be read" in capsys.readouterr().err
    assert main(["init", str(owner.policy)]) == 0
    assert main(["init", str(owner.policy)]) == 2
    capsys.readouterr()
    account.charge(owner.ledger, a_charge("reviews"), 9.0, 1e-4, "rdp")
    assert main(["show", str(owner.policy), "--events"]) == 0
    told = capsys.readouterr().out
    spent = epsilon([(1.0, 0.1, 10)], 1e-4, "rdp")
    assert f"reviews: {spent:.4f} of epsilon 2 is spent" in told
    assert "noise multiplier 1, sample rate 0.1" in told
    assert main(["check", str(owner.policy), *HONEST]) == 0
    assert "allowed: at most 2 trainings of 1 steps with noise" in capsys.readouterr().out
    assert main(["check", str(owner.policy), *HONEST, "privacy=none"]) == 2
    assert "privacy.unit: 'none' is not allowed" in capsys.readouterr().err


def test_the_installed_strategies_are_what_a_policy_can_name():
    found = installed_strategies()
    assert found["fedsvd"] == "fedsvd.strategies.FedSVD"
    assert found["krum"].startswith("flwr.serverapp.strategy.")


PINNED = """
import sys
import flwr.supernode.cli.flwr_clientapp
from flwr.supernode.runtime import run_clientapp
from flwr.common.config import get_project_dir
folder = get_project_dir("evil/app", "1", "0" * 64)
folder.mkdir(parents=True)
(folder / "pyproject.toml").write_text(
    '[project]\\nname = "app"\\nversion = "1"\\n[tool.flwr.app]\\npublisher = "evil"\\n'
    '[tool.flwr.app.components]\\nserverapp = "evil:app"\\nclientapp = "evil:app"')
(folder / "evil.py").write_text("from flwr.clientapp import ClientApp\\napp = ClientApp()\\nevil = 1")
def load():
    app = run_clientapp.get_load_client_app_fn("", None, True)("evil/app", "1", "0" * 64)
    run_clientapp.install_from_fab(b"no bundle", skip_prompt=True) if sys.argv[1] == "ours" else None
    print(type(app).__name__, "evil" in sys.modules, any("evil" in p for p in sys.path))
sys.modules["flwr.supernode.cli.flwr_clientapp"].flwr_clientapp = load
from fedsvd.node.serve import pinned_clientapp
from fedsvd.flower_app import client_app
pinned_clientapp(client_app) if sys.argv[1] == "ours" else load()
"""


@pytest.mark.parametrize(
    ("whose", "loaded"), [("ours", "NodeApp False False"), ("flowers", "ClientApp True True")]
)
def test_a_pinned_node_runs_no_code_of_the_server(tmp_path, whose, loaded):
    """Flower's own command does: the other half is the planted bug."""
    done = subprocess.run(
        [sys.executable, "-c", PINNED, whose], capture_output=True, text=True, check=False,
        timeout=300, cwd=tmp_path,
        env={**os.environ, "FLWR_HOME": str(tmp_path), "PYTHONPATH": str(ROOT)},
    )  # fmt: skip
    assert done.stdout.strip() == loaded, done.stderr[-2000:]
