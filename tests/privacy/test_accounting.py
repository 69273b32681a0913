import math
import subprocess
import sys
import warnings

import dp_accounting as dpa
import mpmath as mp
import numpy as np
import pytest
from dp_accounting.pld import PLDAccountant
from dp_accounting.pld import privacy_loss_distribution as pld_module
from opacus.accountants import PRVAccountant, RDPAccountant
from opacus.accountants.utils import get_noise_multiplier
from scipy.optimize import brentq
from scipy.stats import norm

from fedsvd.errors import InputError
from fedsvd.privacy import accounting, calibration, gaussian, pld, prv, renyi
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


def sampled_delta(sigma, rate, eps):
    """The exact delta at `eps` of one sampled step, the larger of both directions, by mpmath.

    The loss is monotone in the output x, so the best test is x above (or below) one point.
    """
    with mp.workdps(60 + (400 if eps < 1e-3 else 0)):
        s, q, e = mp.mpf(sigma), mp.mpf(rate), mp.mpf(eps)

        def above(x, mean):
            return mp.erfc((x - mean) / s / mp.sqrt(2)) / 2

        x = s**2 * mp.log((mp.exp(e) - 1 + q) / q) + mp.mpf(1) / 2
        removed = (1 - q) * above(x, 0) + q * above(x, 1) - mp.exp(e) * above(x, 0)
        inner = mp.exp(-e) - 1 + q
        added = mp.mpf(0)
        if inner > 0:
            y = s**2 * mp.log(inner / q) + mp.mpf(1) / 2
            mixed = (1 - q) * above(-y, 0) + q * above(-y, -1)
            added = above(-y, 0) - mp.exp(e) * mixed
        return max(removed, added)


def lower_bound(events, delta, mesh):
    """An epsilon below the exact one: dp-accounting with every loss rounded down."""
    whole = pld_module.identity(value_discretization_interval=mesh, pessimistic_estimate=False)
    for sigma, rate, steps in events:
        one = pld_module.from_gaussian_mechanism(
            sigma, pessimistic_estimate=False, value_discretization_interval=mesh,
            sampling_prob=rate, use_connect_dots=False,
        )  # fmt: skip
        whole = whole.compose(one.self_compose(steps))
    return whole.get_epsilon_for_delta(delta)


def opacus_rdp(events, delta, orders=None):
    ledger = RDPAccountant()
    ledger.history = list(events)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return float(ledger.get_epsilon(delta, alphas=orders))


@pytest.mark.parametrize("accountant", ["prv", "rdp", "pld"])
@pytest.mark.parametrize(
    ("rate", "steps", "target"), [(0.1, 50, 0.5), (1.0, 20, 3.0), (0.01, 1000, 3.0)]
)
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
    assert exact * (1 - 1e-6) <= ours <= exact * (1 + 1e-6)
    assert accounting.cost([(sigma, 1.0, steps)], 1e-5, accountant).accountant == "gaussian"


def test_several_noises_without_sampling_are_one_gaussian():
    events = [(2.0, 1.0, 3), (5.0, 1.0, 40), (11.0, 1.0, 7)]
    mu = math.sqrt(3 / 4 + 40 / 25 + 7 / 121)
    ledger = PLDAccountant(value_discretization_interval=1e-4)
    for sigma, _, steps in events:
        ledger.compose(dpa.GaussianDpEvent(sigma), steps)
    for accountant in ("prv", "pld"):
        ours = accounting.epsilon(events, 1e-6, accountant)
        assert ours == pytest.approx(gaussian_epsilon(mu, 1e-6), rel=1e-9)
        assert ours == pytest.approx(ledger.get_epsilon(1e-6), rel=1e-4)
    assert opacus_rdp(events, 1e-6) == pytest.approx(accounting.epsilon(events, 1e-6, "rdp"))


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
    ours, _ = prv.bound(tuple(ledger.history), 1e-5, 0.01)
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


SIGMAS = [0.3, 1.0, 20.0, 1e3]
# Every two of sigma, rate and delta together once at least.
STEPS = [
    (SIGMAS[(i + j) % 4], rate, delta)
    for i, rate in enumerate([1e-9, 1e-4, 0.05, 0.5, 0.999])
    for j, delta in enumerate([1e-3, 1e-5, 1e-9, 1e-12, 1e-30])
]


@pytest.mark.parametrize("accountant", ["prv", "rdp", "pld"])
@pytest.mark.parametrize(("sigma", "rate", "delta"), STEPS)
def test_one_step_is_never_below_the_truth(sigma, rate, delta, accountant):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = accounting.epsilon([(sigma, rate, 1)], delta, accountant)
    assert sampled_delta(sigma, rate, found) <= delta * (1 + 1e-9)


@pytest.mark.parametrize("accountant", ["prv", "rdp", "pld"])
@pytest.mark.parametrize("delta", [1e-4, 1e-8, 1e-10])
@pytest.mark.parametrize(
    ("event", "mesh"),
    [((0.6, 0.01, 300), 1e-3), ((2.0, 0.2, 40), 1e-3), ((40.0, 0.3, 2000), 2e-5),
     ((1.0, 1e-3, 10_000), 2e-4)],
)  # fmt: skip
def test_many_steps_are_never_below_the_truth(event, mesh, delta, accountant):
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = accounting.epsilon([event], delta, accountant)
    assert found >= lower_bound([event], delta, mesh)
    assert found <= opacus_rdp([event], delta) * (1 + 1e-9)


@pytest.mark.parametrize(("sigma", "steps"), [(1.0, 1), (10.0, 25), (100.0, 1000), (1e3, 10**5)])
def test_numeric_accountants_are_not_below_the_closed_form_where_they_answer(sigma, steps):
    """Asked past `cost`, at rate 1, down to the delta at which each of them stops."""
    event, answers = [(sigma, 1.0, steps)], 0
    for delta in 10.0 ** -np.arange(2, 15):
        exact = gaussian.epsilon(math.sqrt(steps) / sigma, delta)
        for ask in (prv.epsilon, pld.epsilon):
            try:
                found = ask(event, delta)
            except ArithmeticError as error:
                assert "delta is below" in str(error) or "points" in str(error)  # noqa: PT017
                continue
            answers += 1
            assert exact * (1 - 1e-9) <= found <= exact * 1.03
    assert answers >= 5


def test_prv_would_be_wrong_at_the_deltas_it_refuses():
    with pytest.raises(ArithmeticError, match="delta is below 1e-08"):
        prv.epsilon([(100.0, 1.0, 1000)], 1e-12)
    exact = gaussian.epsilon(math.sqrt(1000) / 100, 1e-12)
    found, error = prv.bound([(100.0, 1.0, 1000)], 1e-12, 0.004 * exact)
    assert found - error < exact * 0.9995
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert accounting.cost([(100.0, 0.5, 1000)], 1e-12, "prv").accountant == "rdp"


@pytest.mark.parametrize("orders", [None, renyi.WHOLE_ORDERS])
@pytest.mark.parametrize(
    "event", [(0.5, 0.1, 90), (0.9, 0.4, 1000), (3.3, 0.11, 50), (8.0, 0.7, 9)]
)
def test_rdp_is_that_of_opacus_in_the_range_of_its_orders(event, orders):
    ours = renyi.epsilon([event], 1e-5, orders)
    assert ours == pytest.approx(opacus_rdp([event], 1e-5, orders), rel=1e-9)


def test_rdp_takes_larger_orders_where_epsilon_is_small():
    event = [(40.0, 0.01, 100)]
    ours = renyi.epsilon(event, 1e-5)
    assert lower_bound(event, 1e-5, 1e-5) < ours < 0.1 * opacus_rdp(event, 1e-5)


def test_nothing_costs_nothing_and_no_noise_costs_everything():
    assert accounting.epsilon([], 1e-5, "prv") == 0
    assert accounting.epsilon([(1.0, 0.1, 0)], 1e-5, "prv") == 0
    assert accounting.epsilon([(0.0, 0.1, 1)], 1e-5, "prv") == math.inf


def test_where_prv_fails_pld_answers_and_a_warning_says_so():
    event = [(0.5, 0.2, 2000)]  # an epsilon of hundreds, where PRV leaves float64
    with pytest.warns(UserWarning, match="the prv accountant failed .* the PLD bound stands in"):
        found = accounting.cost(event, 1e-5, "prv")
    assert found.accountant == "pld"
    assert found.failed == (("prv", "epsilon is above 500, where exp(epsilon) leaves float64"),)
    assert lower_bound(event, 1e-5, 0.02) <= found.epsilon < opacus_rdp(event, 1e-5)


def test_where_prv_and_pld_fail_rdp_answers():
    event = [(2.0, 0.01, 10**8)]
    with pytest.warns(UserWarning, match="the (prv|pld) accountant failed .* the RDP bound"):
        found = accounting.cost(event, 1e-5, "prv")
    assert found.accountant == "rdp"
    assert [name for name, _ in found.failed] == ["prv", "pld"]


def test_where_no_order_of_rdp_is_enough_the_unsampled_mechanism_bounds():
    event = [(1e6, 0.5, 1)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        found = accounting.cost(event, 1e-300, "prv")
    assert found.accountant == accounting.UNSAMPLED
    assert found.epsilon == gaussian.epsilon(1e-6, 1e-300)
    assert sampled_delta(1e6, 0.5, found.epsilon) <= 1e-300


def test_the_same_question_is_computed_once(monkeypatch):
    asked = []
    real = renyi.epsilon
    monkeypatch.setattr(renyi, "epsilon", lambda *a: asked.append(a) or real(*a))
    for _ in range(3):
        calibration.noise_multipliers(1.7, 1e-5, [0.031, 0.031, 0.05], 40, "rdp")
    assert len(asked) == len(set(asked)) > 0


def test_many_rates_are_each_met_and_few_evaluations_are_needed():
    rates = np.exp(np.linspace(math.log(0.02), math.log(0.4), 12)).tolist()
    found = calibration.noise_multipliers(2.0, 1e-5, rates[::-1], 60, "prv")
    assert sorted(found, reverse=True) == found  # a higher rate needs more noise
    for rate, sigma in zip(rates[::-1], found, strict=True):
        assert 1.99 <= accounting.epsilon([(sigma, rate, 60)], 1e-5, "prv") <= 2.0


def test_a_budget_that_cannot_be_met_is_refused():
    with pytest.raises(InputError, match=r"privacy\.epsilon"):
        calibration.noise_multiplier(1e-9, 1e-5, 0.5, 10**9, "rdp")


LINES = [
    "--sample-rate 0.2 --steps 2 --epsilon 0.001",
    "--sample-rate 0.5 --steps 1000000 --epsilon 1",
    "--sample-rate 0.001 --steps 1000000000 --epsilon 1",
    "--sample-rate 1e-9 --steps 1000 --epsilon 1e-6",
    "--sample-rate 0.01 --steps 1000 --epsilon 1e6",
    "--sample-rate 0.01 --steps 1000 --epsilon 1 --delta 1e-300",
    "--sample-rate 0.3 --steps 20000 --noise-multiplier 1e6",
    "--sample-rate 0.999999 --steps 9 --noise-multiplier 1e-3",
]


ALL_OF_THEM = """
import os, resource, sys
from fedsvd.privacy.__main__ import main

def used():
    own = resource.getrusage(resource.RUSAGE_SELF)
    # ru_maxrss counts what the process held before exec: the memory of the tests that started it.
    told = open("/proc/self/status").read() if os.path.exists("/proc/self/status") else ""
    held = [int(line.split()[1]) for line in told.splitlines() if line.startswith("VmHWM:")]
    return own.ru_utime + own.ru_stime, held[0] if held else own.ru_maxrss

imports = used()[0]
for line in sys.argv[1:]:
    before = used()[0]
    status = main(line.split())
    seconds, kilobytes = used()
    print("USED", status, imports + seconds - before, kilobytes)
"""


def test_the_command_is_bounded_in_time_and_memory():
    """4.5 s of the processor and 0.9 GB, imports included, whatever the question."""
    done = subprocess.run(
        [sys.executable, "-c", ALL_OF_THEM, *LINES], capture_output=True, text=True, timeout=300
    )
    assert done.returncode == 0, done.stderr
    told = [line.split()[1:] for line in done.stdout.splitlines() if line.startswith("USED ")]
    assert len(told) == len(LINES)
    for line, (status, seconds, kilobytes) in zip(LINES, told, strict=True):
        assert status == "0", line
        assert float(seconds) < 4.5, line
        assert int(kilobytes) < 900_000, line


def test_the_command_names_who_failed_and_who_stands_in(capsys):
    assert main(["--sample-rate", "0.2", "--steps", "2", "--epsilon", "0.001"]) == 0
    prv_row, rdp_row, pld_row = capsys.readouterr().out.splitlines()[3:]
    assert "prv failed: its mesh would take more than" in prv_row
    assert "pld's bound" in prv_row
    assert "failed" not in rdp_row + pld_row
    assert main(["--sample-rate", "1", "--steps", "10", "--noise-multiplier", "5"]) == 0
    for row in capsys.readouterr().out.splitlines()[3::2]:
        assert row.endswith("(closed form)")
        exact = gaussian_epsilon(math.sqrt(10) / 5, 1e-5)
        assert float(row.split()[2]) == pytest.approx(exact, rel=1e-5)


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
        ("--steps 5 --sample-rate nan --epsilon 1", "--sample-rate"),
        ("--steps 5 --sample-rate 0.1 --noise-multiplier inf", "--noise-multiplier"),
        ("--steps 5 --sample-rate 0.1 --epsilon 1 --delta 0", "--delta"),
        ("--steps 1000000000 --sample-rate 0.9 --epsilon 1e-6", "--epsilon: 1e-06 cannot be met"),
        ("--steps 5 --examples 9 --epsilon 1", "--batch-size"),
    ],
)
def test_the_command_refuses_wrong_input_in_one_line(line, named, capsys):
    assert main(line.split()) == 2
    told = capsys.readouterr()
    assert told.out == ""
    assert named in told.err
    assert told.err.count("\n") == 1
