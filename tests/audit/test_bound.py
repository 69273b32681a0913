"""The mechanism audit's bound is tight, and a bound."""

from dataclasses import replace

import pytest

from fedsvd.audit.bound import audit_mechanism
from fedsvd.audit.mechanism import ExampleStep, largest_move
from fedsvd.privacy.plan import make_plan
from tests.conftest import compose_settings


@pytest.mark.parametrize("epsilon", [1, 8])
def test_the_bound_is_within_a_tenth_of_the_accountants_epsilon(epsilon):
    settings = compose_settings(f"privacy.epsilon={epsilon}", "privacy.delta=1e-5")
    plan = make_plan(settings, [1137] * 6)
    found, verdicts = audit_mechanism(settings, plan, 1000)
    assert not [v for v in verdicts if v.flagged]
    assert found.epsilon == pytest.approx(epsilon, rel=0.02)
    assert 0.9 * found.epsilon <= found.bound <= found.epsilon


def test_fewer_replays_give_a_looser_bound():
    settings = compose_settings("privacy.accountant=rdp")
    plan = make_plan(settings, [1137] * 6)
    few, many = (audit_mechanism(settings, plan, n)[0] for n in (100, 400))
    assert few.bound < many.bound < many.epsilon


@pytest.mark.parametrize("clipping", ["flat", "per_layer", "automatic"])
def test_no_example_moves_the_real_step_by_more_than_the_clip(clipping):
    settings = compose_settings(f"privacy.clipping={clipping}")
    move, case = largest_move(ExampleStep(settings, 0.0))
    assert 0.9 < move <= 1.001, case


def test_a_plan_that_understates_its_noise_is_flagged():
    """The noise that is added is the plan's: a ledger that counts with more has another epsilon."""
    settings = compose_settings("privacy.accountant=rdp")
    plan = make_plan(settings, [1137] * 6)
    lies = tuple(replace(c, epsilon_bound=c.epsilon_bound / 2) for c in plan.clients)
    _, verdicts = audit_mechanism(settings, replace(plan, clients=lies), 400)
    assert [v.name for v in verdicts if v.flagged] == ["epsilon"]
