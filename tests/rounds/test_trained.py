"""A run in which nothing trained is no success, whatever the reason."""

import json

import pytest

from fedsvd.client import app
from fedsvd.errors import ClientsFailed, NothingTrained
from fedsvd.rounds.trained import check_trained
from fedsvd.run import main
from tests.tiny import make_inputs, run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


def breaking(monkeypatch, how):
    """Have `how(client, round)` called before a client trains."""
    real = app.train_locally

    def train(worker, state, client, round, steps, *more):
        how(client, round)
        return real(worker, state, client, round, steps, *more)

    monkeypatch.setattr(app, "train_locally", train)


def raises(error):
    def how(client, round):
        raise error

    return how


def ledger(folder):
    return json.loads((folder / "privacy.json").read_text())["clients"]


UNITS = ["none", "dp_sgd", "client_level"]


@pytest.mark.parametrize("unit", UNITS)
def test_a_round_in_which_all_software_failed_for_one_reason_ends_the_run(
    unit, inputs, tmp_path, monkeypatch
):
    breaking(monkeypatch, raises(TypeError("no such kernel")))
    with pytest.raises(ClientsFailed) as caught:
        run(tmp_path / "x", inputs, f"privacy={unit}")
    expected = "round 1: all 3 clients failed for the same reason: TypeError: no such kernel (at "
    assert str(caught.value).startswith(f"{expected}fedsvd/client/app.py:")
    assert not (tmp_path / "x" / "summary.json").exists()
    assert len((tmp_path / "x" / "metrics.jsonl").read_text().splitlines()) == 1  # round 0
    steps = sum(c["steps"] for c in ledger(tmp_path / "x"))
    assert steps == (3 if unit == "client_level" else 0)  # no client had taken a step
    assert (tmp_path / "x" / "checkpoints" / "last.safetensors").exists()


def test_it_can_be_gone_on_with_when_the_software_is_mended(inputs, tmp_path, monkeypatch):
    folder, bad = tmp_path / "x", [3]

    def how(client, round):
        if round in bad:
            raise OSError("the disk is gone")

    breaking(monkeypatch, how)
    with pytest.raises(ClientsFailed, match=r"round 3: .*OSError: the disk is gone .*; to go on: "):
        run(folder, inputs)
    spent = sum(c["steps"] for c in ledger(folder))
    bad.clear()
    summary = run(folder, inputs, f"resume={folder}")
    assert summary["rounds_completed"] == 3  # what was asked for in vain counts as a round
    assert summary["ended"]
    assert sum(c["steps"] for c in ledger(folder)) > spent


def test_the_steps_that_were_taken_before_it_are_spent(inputs, tmp_path, monkeypatch):
    real = app.train_locally

    def train(*arguments):
        real(*arguments)
        raise ValueError("after its steps")

    monkeypatch.setattr(app, "train_locally", train)
    with pytest.raises(ClientsFailed, match="after its steps"):
        run(tmp_path / "x", inputs)
    assert sorted(c["steps"] for c in ledger(tmp_path / "x")) == [0, 0, 0, 1, 1, 1]


def test_without_diagnostics_the_type_alone_is_known(inputs, tmp_path, monkeypatch):
    breaking(monkeypatch, raises(ValueError("'my diagnosis' is too long")))
    with pytest.raises(ClientsFailed) as caught:
        run(tmp_path / "x", inputs, "privacy.diagnostics=false")
    told = str(caught.value)
    assert "all 3 clients failed for the same reason: ValueError (privacy.diagnostics=true" in told
    assert "diagnosis' is" not in told
    assert ".py" not in told
    for file in (tmp_path / "x").glob("*.json*"):
        assert "my diagnosis" not in file.read_text()


def test_the_command_ends_with_status_1(inputs, tmp_path, monkeypatch, capfd):
    breaking(monkeypatch, raises(KeyError("weight")))
    monkeypatch.setattr("sys.argv", ["fedsvd"])
    assert main([*inputs, f"hydra.run.dir={tmp_path / 'x'}"]) == 1
    out = capfd.readouterr()
    last = out.err.splitlines()[-1]
    assert last.startswith("error: round 1: all 3 clients failed for the same reason: KeyError")
    assert "epsilon spent" not in out.out


def alternately(client, round):
    if client % 2:
        raise ValueError("odd")
    raise TypeError("even")


def test_several_reasons_do_not_end_a_round_but_no_success_comes_of_them(
    inputs, tmp_path, monkeypatch
):
    """Every round with all six clients, so that both kinds are in it."""
    breaking(monkeypatch, alternately)
    with pytest.raises(NothingTrained) as caught:
        run(tmp_path / "x", inputs, "clients.participation=all")
    assert str(caught.value) == (
        "nothing trained in 4 rounds: 24 replies were left out "
        "(12 x failed: TypeError: even; 12 x failed: ValueError: odd)"
    )
    assert not (tmp_path / "x" / "summary.json").exists()
    assert not (tmp_path / "x" / "adapter").exists()
    assert len((tmp_path / "x" / "metrics.jsonl").read_text().splitlines()) == 5


def test_one_client_that_trains_is_enough(inputs, tmp_path, monkeypatch):
    def how(client, round):
        if client:
            raise ValueError("not the first")

    breaking(monkeypatch, how)
    assert run(tmp_path / "x", inputs, "clients.participation=all")["failures"] == 20


VAIN = [
    (["faults=injected", "faults.kind=raise", "faults.rate=1"], "12 x failed: injected"),
    (["faults=injected", "faults.kind=nan", "faults.rate=1"], "is not finite"),
    (["faults=injected", "faults.kind=stale", "faults.rate=1"], "another round"),
    (["attack=non_finite", "attack.clients=[0,1,2,3,4,5]"], "is not finite"),
    (["clients.participation=poisson", "clients.per_round=1", "rounds=1", "seed=0",
      "privacy=none"], "in 1 rounds: no client took part"),
]  # fmt: skip


@pytest.mark.parametrize(("change", "message"), VAIN, ids=lambda v: str(v)[:40])
def test_all_left_out_in_every_round_is_no_success(change, message, inputs, tmp_path):
    with pytest.raises(NothingTrained, match=message):
        run(tmp_path / "x", inputs, *change)
    with pytest.raises(NothingTrained, match=message):  # again, as there is nothing left to do
        run(tmp_path / "x", inputs, *change, f"resume={tmp_path / 'x'}")


def test_what_the_strategy_made_nothing_of_did_not_train():
    rounds = [{"round": 0, "clients": []}] + [
        {"round": n, "clients": [1, 2], "failed": {}, "not_aggregated": 2} for n in (1, 2)
    ]
    with pytest.raises(NothingTrained, match="in 2 rounds: the strategy made nothing of 4 replies"):
        check_trained(rounds)
    check_trained([*rounds, {"round": 3, "clients": [1, 2], "failed": {"1": "gone"}}])


def test_killed_after_such_a_round_it_is_found_in_the_journal(inputs, tmp_path, monkeypatch):
    """The journal says why nothing came of the round: nobody is asked again to find it out."""

    class Kill(BaseException):
        pass

    def kill(self, *arguments):
        raise Kill

    folder = tmp_path / "x"
    breaking(monkeypatch, raises(TypeError("no such kernel")))
    with monkeypatch.context() as killing:
        killing.setattr("fedsvd.rounds.attempt._account", kill)
        with pytest.raises(Kill):
            run(folder, inputs)
    monkeypatch.undo()
    with pytest.raises(
        ClientsFailed, match="round 1: all 3 clients failed for the same reason: Type"
    ):
        run(folder, inputs, f"resume={folder}")
    assert run(folder, inputs, f"resume={folder}")["rounds_completed"] == 3
