import math
import warnings

import dp_accounting as dpa
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.utils import get_noise_multiplier
from scipy.optimize import brentq
from scipy.stats import norm

from fedsvd.errors import InputError
from fedsvd.privacy import accounting, calibration
from fedsvd.privacy.__main__ import main


def gaussian_epsilon(mu, delta):
    """The exact epsilon of a mechanism whose trade-off is that of N(0, 1) and N(mu, 1).

    Balle and Wang, 2018, theorem 8.
    """

    def excess(eps):
        return (
            norm.cdf(mu / 2 - eps / mu) - math.exp(eps) * norm.cdf(-mu / 2 - eps / mu)
        ) - delta  # fmt: skip

    return brentq(excess, 0, 100)


@pytest.mark.parametrize("accountant", ["prv", "rdp", "pld"])
@pytest.mark.parametrize(("rate", "steps"), [(0.1, 50), (1.0, 20), (0.01, 1000)])
@pytest.mark.parametrize("target", [0.5, 3.0])
def test_calibrated_noise_meets_the_target_and_wastes_little(accountant, rate, steps, target):
    sigma = calibration.noise_multiplier(target, 1e-5, rate, steps, accountant)
    cost = accounting.epsilon([(sigma, rate, steps)], 1e-5, accountant)
    assert 0.99 * target <= cost <= target


def test_agrees_with_the_search_of_opacus():
    ours = calibration.noise_multiplier(1.0, 1e-5, 0.1, 50, "rdp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_noise_multiplier(
            target_epsilon=1.0, target_delta=1e-5, sample_rate=0.1, steps=50, accountant="rdp",
            epsilon_tolerance=0.001,
        )  # fmt: skip
    assert ours == pytest.approx(theirs, rel=0.01)


@pytest.mark.parametrize("accountant", ["prv", "pld"])
@pytest.mark.parametrize(("sigma", "steps"), [(2.0, 1), (10.0, 25), (1.0, 3)])
def test_full_batches_against_the_closed_form(accountant, sigma, steps):
    exact = gaussian_epsilon(math.sqrt(steps) / sigma, 1e-5)
    ours = accounting.epsilon([(sigma, 1.0, steps)], 1e-5, accountant)
    assert exact * (1 - 1e-6) <= ours <= 1.01 * exact


@pytest.mark.parametrize("steps", [50, 1000])
@pytest.mark.parametrize(("rate", "sigma"), [(0.01, 0.8), (0.1, 2.0), (0.2, 4.0)])
def test_prv_and_pld_agree_and_rdp_is_above(rate, sigma, steps):
    event = [(sigma, rate, steps)]
    prv, pld, rdp = (accounting.epsilon(event, 1e-5, a) for a in ("prv", "pld", "rdp"))
    assert prv == pytest.approx(pld, rel=0.01)
    assert rdp > max(prv, pld)


def test_prv_equals_the_accountant_of_opacus_at_the_same_discretisation():
    ledger = PRVAccountant()
    ledger.history = [(1.0, 0.05, 100), (2.0, 0.1, 7)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = ledger.get_epsilon(1e-5, eps_error=0.01)
    ours = accounting._prv_bound(tuple(ledger.history), 1e-5, 0.01)
    assert ours == pytest.approx(theirs, rel=1e-4)


def test_heterogeneous_events_against_an_independent_composition():
    events = [(1.1, 0.05, 30), (2.0, 0.1, 10), (1.1, 0.05, 20), (4.0, 1.0, 3)]
    ledger = PLDAccountant()
    for sigma, rate, steps in events:
        ledger.compose(dpa.PoissonSampledDpEvent(rate, dpa.GaussianDpEvent(sigma)), steps)
    for accountant in ("prv", "pld"):
        ours = accounting.epsilon(events, 1e-5, accountant)
        assert ours == pytest.approx(ledger.get_epsilon(1e-5), rel=0.01)
    assert accounting.merge(events)[0] == (1.1, 0.05, 50)


def test_nothing_costs_nothing_and_no_noise_costs_everything():
    assert accounting.epsilon([], 1e-5, "prv") == 0
    assert accounting.epsilon([(1.0, 0.1, 0)], 1e-5, "prv") == 0
    assert accounting.epsilon([(0.0, 0.1, 1)], 1e-5, "prv") == math.inf


def test_failure_falls_back_to_rdp_and_says_so():
    event = [(0.5, 0.2, 10000)]  # an epsilon of thousands, where PRV overflows
    with pytest.warns(UserWarning, match="the prv accountant failed .* the RDP bound stands in"):
        found = accounting.cost(event, 1e-5, "prv")
    assert found.accountant == "rdp"
    ledger = RDPAccountant()
    ledger.history = event
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert found.epsilon == pytest.approx(ledger.get_epsilon(1e-5))


def test_the_same_question_is_computed_once(monkeypatch):
    asked = []
    real = accounting.ACCOUNTANTS["rdp"]
    monkeypatch.setitem(
        accounting.ACCOUNTANTS, "rdp", lambda *a: asked.append(a) or real(*a)
    )  # fmt: skip
    for _ in range(3):
        calibration.noise_multipliers(1.7, 1e-5, [0.031, 0.031, 0.05], 40, "rdp")
    assert len(asked) == len(set(asked))


def test_many_rates_are_each_met_and_few_evaluations_are_needed():
    rates = np.exp(np.linspace(math.log(0.02), math.log(0.4), 12)).tolist()
    found = calibration.noise_multipliers(2.0, 1e-5, rates[::-1], 60, "prv")
    assert sorted(found, reverse=True) == found  # a higher rate needs more noise
    for rate, sigma in zip(rates[::-1], found, strict=True):
        assert 1.99 <= accounting.epsilon([(sigma, rate, 60)], 1e-5, "prv") <= 2.0


def test_a_budget_that_cannot_be_met_is_refused():
    with pytest.raises(InputError, match=r"privacy\.epsilon"):
        calibration.noise_multiplier(1e-9, 1e-5, 0.5, 10, "rdp")


def test_the_command_answers_both_questions(capsys):
    assert main(["--sample-rate", "0.1", "--steps", "50", "--epsilon", "1"]) == 0
    table = capsys.readouterr().out.splitlines()[3:]
    assert [line.split()[0] for line in table] == ["prv", "rdp", "pld"]
    for line in table:
        name, sigma, eps = line.split()
        assert 0.99 <= float(eps) <= 1
        assert main(
            f"--examples 1280 --batch-size 128 --steps 50 --noise-multiplier {sigma} "
            f"--accountant {name}".split()
        ) == 0  # fmt: skip
        assert float(capsys.readouterr().out.split()[-1]) == pytest.approx(float(eps), rel=1e-4)


@pytest.mark.parametrize(
    ("line", "named"),
    [
        ("--steps 5 --epsilon 1", "--sample-rate"),
        ("--steps 5 --sample-rate 0.1", "--epsilon, --noise-multiplier"),
        ("--steps 5 --sample-rate 0.1 --epsilon 1 --noise-multiplier 2", "give one of the two"),
        ("--steps 5 --sample-rate 2 --epsilon 1", "--sample-rate"),
        ("--steps 0 --sample-rate 0.1 --epsilon 1", "--steps"),
        ("--steps 5 --sample-rate 0.1 --epsilon -1", "--epsilon"),
        ("--steps 5 --sample-rate 0.1 --epsilon 1 --delta 1", "--delta"),
        ("--steps 5 --sample-rate 0.1 --epsilon 1 --accountant prw", "did you mean 'prv'"),
        ("--steps 5 --examples 9 --epsilon 1", "--batch-size"),
    ],
)
def test_the_command_refuses_wrong_input_in_one_line(line, named, capsys):
    assert main(line.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert named in told.err
    assert told.err.count("\n") == 1
