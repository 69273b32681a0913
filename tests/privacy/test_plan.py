import math
import warnings

import pytest
from opacus.accountants import RDPAccountant
from opacus.accountants.utils import get_noise_multiplier

from fedsvd.errors import InputError
from fedsvd.privacy import accounting
from fedsvd.privacy.ledger import Ledger
from fedsvd.privacy.plan import make_plan


@pytest.mark.parametrize("accountant", ["prv", "rdp"])
@pytest.mark.parametrize(("rate", "steps"), [(0.1, 50), (1.0, 20), (0.01, 1000)])
@pytest.mark.parametrize("target", [0.5, 3.0])
def test_calibrated_noise_meets_the_target_and_wastes_little(accountant, rate, steps, target):
    sigma = accounting.noise_multiplier(target, 1e-5, rate, steps, accountant)
    cost = accounting.epsilon([(sigma, rate, steps)], 1e-5, accountant)
    assert 0.99 * target <= cost <= target


def test_agrees_with_the_search_of_opacus():
    ours = accounting.noise_multiplier(1.0, 1e-5, 0.1, 50, "rdp")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        theirs = get_noise_multiplier(
            target_epsilon=1.0, target_delta=1e-5, sample_rate=0.1, steps=50, accountant="rdp",
            epsilon_tolerance=0.001,
        )  # fmt: skip
    assert ours == pytest.approx(theirs, rel=0.01)


def test_full_batch_gaussian_against_the_closed_form():
    # One step at rate 1 is the Gaussian mechanism (Balle and Wang, 2018, theorem 8).
    sigma, eps = 2.0, accounting.epsilon([(2.0, 1.0, 1)], 1e-5, "prv")

    def cdf(x):
        return 0.5 * math.erfc(-x / math.sqrt(2))

    delta = cdf(0.5 / sigma - eps * sigma) - math.exp(eps) * cdf(-0.5 / sigma - eps * sigma)
    assert delta == pytest.approx(1e-5, rel=0.2)


def test_nothing_costs_nothing_and_no_noise_costs_everything():
    assert accounting.epsilon([], 1e-5, "prv") == 0
    assert accounting.epsilon([(0.0, 0.1, 1)], 1e-5, "prv") == math.inf


def test_prv_failure_falls_back_to_rdp_and_says_so(monkeypatch):
    from opacus.accountants import PRVAccountant

    def fail(self, *args, **kwargs):
        raise RuntimeError("the discretisation failed")

    monkeypatch.setattr(PRVAccountant, "get_epsilon", fail)
    with pytest.warns(UserWarning, match="the RDP bound stands in"):
        cost = accounting.epsilon([(1.234, 0.1, 10)], 1e-5, "prv")
    ledger = RDPAccountant()
    ledger.history = [(1.234, 0.1, 10)]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        assert cost == pytest.approx(ledger.get_epsilon(1e-5))


@pytest.mark.parametrize("participation", ["balanced", "uniform", "poisson", "all"])
def test_no_client_ends_above_its_target(settings, participation):
    from fedsvd.participation import participants

    s = settings(
        f"clients.participation={participation}", "rounds=20", "privacy.accountant=rdp",
        "training.batch_size=64",
    )  # fmt: skip
    plan = make_plan(s, [60, 200, 500, 900, 1500, 3000])
    ledger, taken = Ledger(plan), [0] * 6
    for round in range(1, 21):
        for k in participants(s.clients, s.rounds, 5, round, taken):
            assert not ledger.would_exceed(k, s.training.local_steps)
            ledger.record(k, round, s.training.local_steps)
            taken[k] += 1
    assert max(taken) > 0
    assert ledger.epsilon_max() <= s.privacy.epsilon
    again = Ledger(plan)
    again.load(ledger.as_dict())
    assert again.as_dict() == ledger.as_dict()


def test_the_ledger_composes_what_ran_and_refuses_more(settings):
    s = settings("rounds=4", "privacy.accountant=rdp")
    plan = make_plan(s, [500] * 6)
    ledger = Ledger(plan)
    assert ledger.epsilon(0) == 0
    ledger.record(0, 1, plan.clients[0].steps_bound)
    planned = plan.clients[0]
    assert ledger.epsilon(0) == pytest.approx(planned.epsilon_bound)
    assert ledger.would_exceed(0, 2)
    assert not ledger.would_exceed(1, 2)


def test_delta_must_be_below_one_over_n(settings):
    with pytest.raises(InputError, match=r"privacy\.delta.*client 1"):
        make_plan(settings("privacy.delta=0.01"), [50, 120, 30])
    with pytest.raises(InputError, match=r"privacy\.epsilon"):
        make_plan(settings("privacy.epsilon=1e-9", "privacy.accountant=rdp"), [50] * 6)
