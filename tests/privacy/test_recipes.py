"""Noise as published: what it is made for, what is spent with it, and that nobody can overlook it."""

import json

import pytest
from opacus.accountants import PRVAccountant

from fedsvd.errors import InputError
from fedsvd.objectives.metric import ACCURACY
from fedsvd.privacy.__main__ import main
from fedsvd.privacy.bounds import rounds_bound
from fedsvd.privacy.ledger import Ledger
from fedsvd.privacy.plan import make_plan, warnings_of
from fedsvd.privacy.recipes import calibrated_for
from fedsvd.results.collect import find_runs, group_runs
from fedsvd.results.compare import compare
from fedsvd.results.sweep import cells
from tests import tiny

# SST-2's clients at the published shares and batch, rounded: 14,117 examples is their mean.
PAPER = [
    "privacy.epsilon=6", "privacy.delta=1e-5", "privacy.public_counts=true", "rounds=100",
    "training.local_steps=10", "clients.participation=uniform",
]  # fmt: skip
SIZES = [14117] * 6
Q = 128 / 14117


def opacus(sigma, rate, steps):
    accountant = PRVAccountant()
    accountant.history = [(sigma, rate, steps)]
    return accountant.get_epsilon(delta=1e-5)


@pytest.mark.parametrize(
    ("accounting", "rate", "steps", "bound"),
    [("paper", Q / 2, 1000, 1000), ("paper_mean", Q, 500, 1000), ("ours", Q, 600, 600)],
)
def test_what_each_mode_calibrates_for(settings, accounting, rate, steps, bound):
    """By Opacus's own accountant, which the published code asks: what is assumed costs epsilon 6."""
    plan = make_plan(settings(*PAPER, f"privacy.accounting={accounting}"), SIZES)
    client = plan.clients[0]
    assert client.calibrated_rate == pytest.approx(rate)
    assert (client.calibrated_steps, client.steps_bound) == (steps, bound)
    assert (client.sample_rate, client.accounted_rate) == (Q, Q)  # what it does, in any mode
    assert opacus(client.noise_multiplier, rate, steps) == pytest.approx(6, rel=0.01)
    assert client.epsilon_bound == pytest.approx(
        opacus(client.noise_multiplier, Q, bound), rel=0.01
    )
    told = warnings_of(plan)
    assert len(told) == (accounting != "ours")
    assert all("above the target 6; nobody sits out" in line for line in told)
    assert plan.as_dict()["accounting"] == accounting


def test_what_the_published_noise_spends_is_as_the_pitfalls_say(settings):
    """docs/pitfalls.md: 7.86 for the mean client, 8.36 for one drawn in 60 of 100 rounds."""
    plan = make_plan(settings(*PAPER, "privacy.accounting=paper"), SIZES)
    assert plan.clients[0].noise_multiplier == pytest.approx(0.533306, rel=2e-3)
    ledger = Ledger(plan)
    for number in range(1, 101):
        asked = [0, 1] if number <= 50 else [0] if number <= 60 else [2]
        ledger.record_round(number, asked, {})
    assert [ledger.steps(k) for k in range(3)] == [600, 500, 400]
    assert ledger.epsilon(0) == pytest.approx(8.36, abs=0.03)
    assert ledger.epsilon(1) == pytest.approx(7.86, abs=0.03)
    assert not ledger.would_exceed(0)  # nobody is held back
    told = ledger.as_dict()
    assert set(told["above_target"]) == {"0", "1", "2"}
    assert told["above_target"]["0"] == told["epsilon_max"] == ledger.epsilon(0)
    assert "client 0: has spent epsilon 8.3" in told["notes"][1]
    assert "above the target 6: privacy.accounting=paper is no bound" in told["notes"][1]


def test_the_command_tells_what_published_noise_spends(capsys):
    """As with the noise given; and as docs/pitfalls.md has it in two commands."""
    given = ["--sample-rate", "0.009067", "--steps", "600", "--accountant", "prv"]
    assert main([*given, "--epsilon", "6", "--made-for", "0.0045335", "1000"]) == 0
    _, sigma, epsilon = capsys.readouterr().out.splitlines()[-1].split()
    assert main([*given, "--noise-multiplier", sigma]) == 0
    again = capsys.readouterr().out.splitlines()[-1].split()
    assert float(again[2]) == pytest.approx(float(epsilon), rel=1e-4)
    assert (float(sigma), float(epsilon)) == (
        pytest.approx(0.533306, rel=1e-3),
        pytest.approx(8.355, abs=0.01),
    )
    for wrong in (["--noise-multiplier", "1"], ["--epsilon", "6", "--made-for", "2", "10"]):
        assert main([*given, "--made-for", "0.1", "10", *wrong]) == 2
        assert "--made-for" in capsys.readouterr().err


def test_ours_has_nothing_to_warn_of_and_holds_back(settings):
    plan = make_plan(settings(*PAPER), SIZES)
    ledger = Ledger(plan)
    for number in range(1, 61):
        assert not ledger.would_exceed(0)
        ledger.record_round(number, [0], {})
    assert ledger.would_exceed(0)
    assert ledger.epsilon(0) <= 6
    assert ledger.as_dict()["above_target"] == {}
    assert ledger.as_dict()["notes"] == []


def test_the_share_follows_who_takes_part(settings):
    all_of = settings(*PAPER, "privacy.accounting=paper", "clients.participation=all")
    assert calibrated_for(all_of, [0.2], 1000) == ([0.2], 1000)
    odd = settings("privacy.accounting=paper_mean", "clients.per_round=1", "rounds=7")
    assert calibrated_for(odd, [0.2], 4) == ([0.2], 3)  # 14 / 6 steps on average, rounded up
    clients = settings("clients.participation=poisson").clients
    assert rounds_bound(clients, 100) == 60
    assert rounds_bound(clients, 100, limited=False) == 100
    capped = settings("clients.participation=uniform", "clients.max_rounds=40").clients
    assert rounds_bound(capped, 100, limited=False) == 40


def test_a_delta_that_large_clients_do_not_meet_is_told_and_not_refused(settings):
    given, sizes = ["privacy.delta=1e-3", "privacy.public_counts=true"], [500, 2000, 900]
    with pytest.raises(InputError, match=r"privacy\.delta.*client 1"):
        make_plan(settings(*given), sizes)
    told = warnings_of(make_plan(settings(*given, "privacy.accounting=paper"), sizes))
    assert told[-1].startswith("delta 0.001 is not below 1/n of client 1:")


@pytest.mark.parametrize(
    ("given", "told"),
    [
        (["privacy=client_level"], r"privacy\.accounting: 'paper' .* privacy\.unit=client"),
        (["privacy.noise_multiplier=1", "privacy.epsilon=null"], r"privacy\.accounting: 'paper'"),
        (["privacy.accounting=papers"], r"did you mean 'paper'"),
    ],
)
def test_what_no_recipe_is_for_is_refused(settings, given, told):
    with pytest.raises(InputError, match=told):
        settings("privacy.accounting=paper", *given)
    assert settings("privacy.accounting=paper", "privacy=none").privacy.unit == "none"


@pytest.mark.report
def test_a_run_says_loudly_that_the_published_budget_is_exceeded(tmp_path, capsys):
    given = tiny.make_inputs(tmp_path)
    given += ["clients.number=4", "clients.per_round=1", "clients.participation=uniform", "rounds=6",
              "privacy.epsilon=2"]  # fmt: skip
    found = {}
    for mode in ("ours", "paper"):
        capsys.readouterr()
        found[mode] = tiny.run(tmp_path / mode, given, f"privacy.accounting={mode}", "seed=3")
        screen = capsys.readouterr().out
        ledger = json.loads((tmp_path / mode / "privacy.json").read_text())
        summary = json.loads((tmp_path / mode / "summary.json").read_text())
        assert ledger["accounting"] == summary["accounting"] == mode
        assert summary["epsilon_max"] == max(c["epsilon"] for c in ledger["clients"])
        assert ledger["above_target"] == summary["epsilon_above_target"]
        over = {str(c["client"]): c["epsilon"] for c in ledger["clients"] if c["epsilon"] > 2}
        assert summary["epsilon_above_target"] == over
        report = (tmp_path / mode / "report.html").read_text()
        card = (tmp_path / mode / "adapter" / "README.md").read_text()
        for text, word in (
            (screen, "EXCEEDED"),
            (report, "EXCEEDED"),
            (card, "ABOVE its target 2"),
        ):
            assert (word in text) == (mode == "paper")
        assert ("WARNING" in screen) == (mode == "paper")
    assert found["ours"]["epsilon_max"] <= 2 < found["paper"]["epsilon_max"]
    rows = [cells(row, ACCURACY) for row in compare(group_runs(find_runs(tmp_path)[0]))]
    assert sum("target 2" in row[2] for row in rows) == 1
