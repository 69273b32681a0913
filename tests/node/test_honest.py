"""An honest server: training works until the budget is used up, over runs, restarts and processes."""

import os
import subprocess
import sys
import warnings
from pathlib import Path

import numpy as np
import pytest
from opacus.accountants import RDPAccountant

from fedsvd.client import worker
from fedsvd.flower_app import client_app
from fedsvd.node import account
from fedsvd.node.refusals import Refusal
from fedsvd.privacy.calibration import noise_multiplier
from tests.node.owner import (
    DELTA,
    EPSILON,
    assert_refused,
    assert_tells_nothing,
    context,
    events,
    make_owner,
    message,
)

ROOT = Path(__file__).resolve().parents[2]
# Two trainings of a run spend epsilon 1 by the server's reckoning; the owner's 2 end sooner or later.
RATE = 8 / 300


def bound(sigma: float, rate: float, steps: int) -> int:
    """How many trainings Opacus' accountant lets pass at the owner's epsilon and delta."""
    taken = 0
    while True:
        ledger = RDPAccountant()
        ledger.history = [(sigma, rate, steps * (taken + 1))]
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            if ledger.get_epsilon(DELTA) > EPSILON:
                return taken
        taken += 1


@pytest.fixture
def owner(tmp_path):
    return make_owner(tmp_path)


LOUD = ("privacy.epsilon=null", "privacy.noise_multiplier=0.83", "training.local_steps=3")


def test_an_honest_round_is_charged_what_it_really_takes(owner):
    reply = client_app(message(), context(owner))
    assert reply.content["report"]["steps"] == 1
    assert all(np.isfinite(a.numpy()).all() for a in reply.content["arrays"].values())
    assert events(owner) == [(noise_multiplier(1, 1e-5, RATE, 2, "rdp"), RATE, 1)]
    (charge,) = owner.charges()
    assert (charge.data, charge.run, charge.round) == ("reviews", "7", 1)


def test_the_budget_ends_where_the_accountant_says_whatever_the_run_or_the_round(owner):
    most = bound(0.83, RATE, 3)
    assert 2 < most < 40
    for i in range(most):
        run = context(owner, *LOUD, f"rounds={2 + i}", f"seed={i}", run=i // 2)
        asked = message(**{"server-round": 1 + i % 2})
        assert not client_app(asked, run).has_error(), i
    for run, given in ((0, LOUD), (1000, LOUD), (0, (*LOUD, "rounds=1000"))):
        assert_refused(owner, message(), context(owner, *given, run=run), Refusal.SPENT)
    assert events(owner) == [(0.83, RATE, 3)] * most
    # What is left is enough for less.
    less = (*LOUD[:1], "privacy.noise_multiplier=50", "training.local_steps=1")
    assert not client_app(message(), context(owner, *less)).has_error()


def test_without_the_charge_it_would_not_end(owner, monkeypatch):
    """Planted bug."""
    monkeypatch.setattr(account, "charge", lambda *_: 0.0)
    loud = (LOUD[0], "privacy.noise_multiplier=0.2", "training.local_steps=100")
    with pytest.raises(AssertionError):
        assert_refused(owner, message(), context(owner, *loud), Refusal.SPENT)


def test_flowers_state_of_the_client_does_not_matter(owner):
    told = context(owner, *LOUD)
    for _ in range(3):
        assert not client_app(message(), told).has_error()
        told.state.clear() if hasattr(told.state, "clear") else None
    assert len(events(owner)) == 3


TRAIN = """
import sys
from pathlib import Path
from tests.node.owner import Owner, context, message
from fedsvd.client import worker
from fedsvd.flower_app import client_app
owner = Owner(Path(sys.argv[1]))
kill = sys.argv[2] == "kill"
if kill:
    import os, fedsvd.client.app
    fedsvd.client.app.train_locally = lambda *args: os._exit(9)
for run in range(int(sys.argv[3])):
    reply = client_app(message(), context(owner, *sys.argv[4:], run=run))
    print(reply.error.reason if reply.has_error() else "trained")
"""


def other_process(owner, *arguments):
    done = subprocess.run(
        [sys.executable, "-c", TRAIN, str(owner.folder), *arguments],
        capture_output=True, text=True, timeout=300, check=False, cwd=ROOT,
        env={**os.environ, "PYTHONPATH": str(ROOT), "OMP_NUM_THREADS": "1"},
    )  # fmt: skip
    return done.returncode, done.stdout.split()


def test_a_restart_begins_where_the_account_stands_and_a_kill_is_charged(owner):
    most = bound(0.83, RATE, 3)
    for i in range(most - 3):
        assert not client_app(message(), context(owner, *LOUD, run=i)).has_error()
    status, _ = other_process(owner, "kill", "1", *LOUD)
    assert status == 9
    assert len(events(owner)) == most - 2  # charged before it trained
    status, told = other_process(owner, "go on", "3", *LOUD)
    assert (status, told) == (0, ["trained", "trained", "budget-spent"])
    assert_refused(owner, message(), context(owner, *LOUD), Refusal.SPENT)


@pytest.mark.parametrize(
    "change",
    [
        "a symbolic link",
        "another order",
        "another name of the data",
        "a further row",
        "another run",
    ],
)
def test_the_same_rows_have_one_account(owner, change):
    assert not client_app(message(), context(owner, *LOUD)).has_error()
    rest = bound(0.83, RATE, 3) - 1
    worker._built.clear()
    if change == "a symbolic link":
        (owner.folder / "link").symlink_to(owner.data.parent)
        owner.write(data={"path": str(owner.folder / "link")}, id="linked")
    elif change == "another order":
        header, *lines = owner.data.read_text().splitlines()
        owner.data.write_text("\n".join([header, *reversed(lines)]))
        owner.write(id="reversed")
    elif change == "another name of the data":
        owner.write(id="renamed")
    elif change == "a further row":
        owner.data.write_text(owner.data.read_text() + "\nanother one,bad")
    for i in range(rest):
        assert not client_app(message(), context(owner, *LOUD, run=i)).has_error()
    assert_refused(owner, message(), context(owner, *LOUD), Refusal.SPENT)


def test_other_data_under_another_name_have_an_account_of_their_own(owner):
    while not client_app(message(), context(owner, *LOUD)).has_error():
        pass
    spent = len(events(owner))
    owner.data.write_text("text,label\n" + "\n".join(f"other {i},bad" for i in range(50)))
    owner.write(id="others")
    assert not client_app(message(), context(owner, *LOUD)).has_error()
    assert len(events(owner)) == spent + 1


def test_a_policy_without_privacy_trains_as_the_server_says_and_keeps_no_account(owner):
    """The owner's word, for data that are public."""
    owner.write(privacy={"unit": "none", "epsilon": None, "delta": None})
    reply = client_app(message(), context(owner, "privacy=none"))
    assert dict(reply.content["report"]) == {"steps": 1}
    assert events(owner) == []
    asked = context(owner, "privacy=none", "privacy.diagnostics=true")
    assert_refused(owner, message(), asked, Refusal.NOT_ALLOWED)
    owner.write(privacy={"unit": "none", "diagnostics": True})
    assert "loss" in client_app(message(), asked).content["report"]
    found = client_app(message("evaluate", part="validation"), asked)
    assert set(found.content["metrics"]) == {"accuracy", "loss", "examples", "num-examples"}


@pytest.mark.parametrize(
    "damage", ["missing", "torn", "changed", "empty", "open", "nan", "zeroed", "link"]
)
def test_a_ledger_that_is_not_whole_refuses_and_is_not_begun_again(owner, damage):
    assert not client_app(message(), context(owner)).has_error()
    whole = owner.ledger.read_text()
    broken = {
        "torn": whole[: len(whole) // 2],
        "changed": whole.replace('"steps": 1', '"steps": 0'),
        "empty": "",
        "nan": whole.replace('"steps": 1', '"steps": NaN'),
        "zeroed": '{"version": 1, "charges": [], "sha256": ""}',
    }
    if damage == "missing":
        owner.ledger.unlink()
    elif damage == "open":
        owner.ledger.chmod(0o644)
    elif damage == "link":
        owner.ledger.rename(owner.folder / "elsewhere.json")
        owner.ledger.symlink_to(owner.folder / "elsewhere.json")
    else:
        owner.ledger.write_text(broken[damage])
    for _ in range(2):
        reply = client_app(message(), context(owner))
        assert_tells_nothing(reply, Refusal.UNAVAILABLE)
    assert owner.ledger.exists() == (damage != "missing")


def test_the_account_is_on_disk_before_the_node_trains(owner, monkeypatch):
    order = []
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda f: (order.append("fsync"), real(f))[1])
    import fedsvd.client.app as app

    train = app.train_locally
    monkeypatch.setattr(app, "train_locally", lambda *a: (order.append("train"), train(*a))[1])
    client_app(message(), context(owner))
    assert order == ["fsync", "fsync", "train"]  # the file and its folder
    assert owner.ledger.stat().st_mode & 0o777 == 0o600
