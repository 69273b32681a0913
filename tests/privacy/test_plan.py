import math
from dataclasses import replace

import numpy as np
import pytest

from fedsvd.errors import InputError
from fedsvd.privacy.ledger import Ledger
from fedsvd.privacy.plan import make_plan, noise_source, weighting
from fedsvd.rounds.participation import participants
from fedsvd.settings import ClientSettings
from tests.privacy.test_accounting import gaussian_epsilon

SIZES = [60, 200, 500, 900, 1500, 3000]


def test_private_counts_do_not_show_in_what_the_server_sees(settings):
    s = settings("privacy.accountant=rdp")
    one, other = make_plan(s, SIZES), make_plan(s, [1000] * 6)
    for a, b in zip(one.clients, other.clients, strict=True):
        assert (a.sample_rate, a.expected_batch, a.noise_multiplier, a.steps_bound) == (
            b.sample_rate, b.expected_batch, b.noise_multiplier, b.steps_bound,
        )  # fmt: skip
    assert one.clients[0].sample_rate == pytest.approx(128 / (6824 / 6))
    assert one.clients[0].expected_batch == pytest.approx(128)
    assert weighting(s) == "uniform"


def test_public_counts_set_rates_and_weights(settings):
    s = settings("privacy.accountant=rdp", "privacy.public_counts=true")
    plan = make_plan(s, SIZES)
    assert [c.sample_rate for c in plan.clients] == [min(1, 128 / n) for n in SIZES]
    assert [c.expected_batch for c in plan.clients] == [min(128, n) for n in SIZES]
    assert weighting(s) == "examples"
    noise = [c.noise_multiplier for c in plan.clients]
    assert noise == sorted(noise, reverse=True)


@pytest.mark.parametrize(
    ("overrides", "named"),
    [
        (["clients.weighting=examples"], r"clients\.weighting.*public_counts=true"),
        (["privacy.noise_multiplier=1"], r"privacy\.noise_multiplier.*privacy\.epsilon=null"),
        (["privacy.epsilon=null"], r"privacy\.epsilon.*privacy\.noise_multiplier"),
        (["privacy.threat_model=trusted_server"], r"privacy\.threat_model"),
        (["privacy=client_level", "privacy.threat_model=trusted_server"], r"participation=poisson"),
        (
            [
                "privacy=client_level",
                "privacy.threat_model=trusted_server",
                "clients.participation=poisson",
            ],
            r"privacy\.secure_noise: False.*threat_model=trusted_server.*who takes part",
        ),
        (["privacy.unit=clients"], r"did you mean 'client'"),
        (["privacy.clipping=flatt"], r"did you mean 'flat'"),
        (["+privacy.clip_quantile=0.5"], r"privacy\.clip_quantile.*unit=client"),
        (["privacy=client_level", "privacy.clip_quantile=1"], r"privacy\.clip_quantile"),
    ],
)
def test_contradictions_are_refused(settings, overrides, named):
    with pytest.raises(InputError, match=named):
        settings(*overrides)


def test_a_task_without_a_public_size_is_refused_under_privacy(settings):
    s = settings("data.public_size=null")
    with pytest.raises(InputError, match=r"data\.public_size.*privacy\.public_counts=true"):
        make_plan(s, [500] * 6)
    assert make_plan(settings("data.public_size=null", "privacy=none"), SIZES).clients[0].examples


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "from the run's seed: repeatable, do not publish this model"),
        (["privacy.secure_noise=true"], "from the operating system"),
        (["privacy=client_level"], "from the run's seed: repeatable, do not publish this model"),
        (["privacy=client_level", "privacy.secure_noise=true"], "from the operating system"),
        (["privacy=none"], "none: nothing is protected"),
        (["privacy=none", "privacy.secure_noise=true"], "none: nothing is protected"),
    ],
)
def test_it_is_told_where_the_noise_comes_from(settings, overrides, told):
    plan = make_plan(settings("privacy.accountant=rdp", *overrides), SIZES)
    assert noise_source(plan) == told


def test_delta_must_be_below_one_over_n(settings):
    with pytest.raises(InputError, match=r"privacy\.delta.*client 1"):
        make_plan(settings("privacy.delta=0.01"), [50, 120, 30])
    with pytest.raises(InputError, match=r"privacy\.delta.*clients\.number"):
        make_plan(settings("privacy=client_level", "privacy.delta=0.2"), [50] * 6)


def test_given_noise_states_its_cost(settings):
    s = settings("privacy.noise_multiplier=1.3", "privacy.epsilon=null", "privacy.accountant=rdp")
    plan = make_plan(s, [500] * 6)
    ledger = Ledger(plan)
    bound = plan.clients[0]
    assert bound.noise_multiplier == 1.3
    ledger.record(0, 1, bound.steps_bound)
    assert ledger.epsilon(0) == bound.epsilon_bound
    assert ledger.would_exceed(0)
    assert not ledger.would_exceed(1)


def test_client_level_costs_a_gaussian_a_round(settings):
    plan = make_plan(settings("privacy=client_level", "rounds=20", "privacy.accountant=pld"), SIZES)
    first = plan.clients[0]
    assert (first.accounted_rate, first.steps_bound) == (1.0, 10)
    exact = gaussian_epsilon(math.sqrt(10) / first.noise_multiplier, 1e-5)
    assert 0.99 * 8 <= exact <= 8


def test_a_trusted_server_charges_everybody_every_round_at_the_sampling_rate(settings):
    s = settings(
        "privacy=client_level", "privacy.threat_model=trusted_server", "rounds=8",
        "privacy.secure_noise=true",
        "clients.participation=poisson", "clients.number=60", "clients.per_round=6",
        "privacy.accountant=rdp",
    )  # fmt: skip
    plan = make_plan(s, [100] * 60)
    assert {(c.accounted_rate, c.steps_bound) for c in plan.clients} == {(0.1, 8)}
    seen = make_plan(settings("privacy=client_level", "rounds=8", "privacy.accountant=rdp",
                              "clients.number=60", "clients.per_round=60"), [100] * 60)  # fmt: skip
    assert plan.clients[0].noise_multiplier < seen.clients[0].noise_multiplier
    ledger = Ledger(plan)
    for round in range(1, 9):
        ledger.record_round(round, [3], {3: 2})
    assert ledger.epsilon(0) == ledger.epsilon(3) == plan.clients[0].epsilon_bound


def test_the_ledger_composes_what_ran_and_refuses_more(settings):
    s = settings("rounds=4", "privacy.accountant=rdp")
    plan = make_plan(s, [500] * 6)
    ledger = Ledger(plan)
    assert ledger.epsilon(0) == 0
    ledger.record_round(1, [0, 2], {0: plan.clients[0].steps_bound})
    planned = plan.clients[0]
    assert ledger.epsilon(0) == pytest.approx(planned.epsilon_bound)
    assert ledger.steps(2) == s.training.local_steps  # it did not say: the whole round
    assert ledger.would_exceed(0)
    assert not ledger.would_exceed(1)
    again = Ledger(plan)
    again.load(ledger.as_dict())
    assert again.as_dict() == ledger.as_dict()


def test_a_fallback_is_noted(settings):
    s = settings(
        "privacy.noise_multiplier=0.5", "privacy.epsilon=null", "rounds=20000",
        "clients.participation=all", "data.public_size=4000",
    )  # fmt: skip
    with pytest.warns(UserWarning, match="stands in"):
        plan = make_plan(s, [500] * 6)
    assert plan.clients[0].accountant == "pld"
    assert "the prv accountant failed" in Ledger(plan).as_dict()["notes"][0]


# Public features by which clients differ, for a few numbers of clients.
APART = {
    n: tuple(map(tuple, np.random.default_rng(n).normal(size=(n, n)).tolist())) for n in (4, 10)
}
KINDS = ["balanced", "uniform", "poisson", "all", "dpp"]


@pytest.mark.parametrize("participation", KINDS)
def test_no_client_ends_above_its_target_in_250_random_schedules(settings, participation):
    """Over the kinds: cohorts, rounds, steps, units, failures and seeds at random."""
    rng, base = np.random.default_rng(KINDS.index(participation)), settings()
    exceeded, busiest = [], []
    for case in range(250):
        number = int(rng.choice([4, 10]))
        per = int(rng.choice([1, number // 2]))
        rounds, steps = int(rng.choice([6, 17])), int(rng.choice([1, 3]))
        client_level = bool(rng.random() < 0.3)
        trusted = client_level and participation == "poisson" and rng.random() < 0.5
        threat = "trusted_server" if trusted else "server_sees_participants"
        unit = "client" if client_level else "example"
        s = replace(
            base, rounds=rounds, seed=case,
            clients=ClientSettings(number, per, participation, features=APART[number]),
            training=replace(base.training, local_steps=steps),
            data=replace(base.data, public_size=900 * number),
            privacy=replace(
                base.privacy, unit=unit, epsilon=2.0, threat_model=threat, secure_noise=trusted
            ),
        )  # fmt: skip
        plan = make_plan(s, [900] * number)
        ledger, taken = Ledger(plan), [0] * number
        for round in range(1, rounds + 1):
            draw = participants(s.clients, plan.rounds_bound, s.seed, round, taken)
            asked = [k for k in draw.clients if not ledger.would_exceed(k)]
            # Some fail half way and say how far they came, some die silently.
            told = {k: int(rng.integers(0, steps + 1)) for k in asked if rng.random() < 0.9}
            ledger.record_round(round, asked, told)
            for k in asked:
                taken[k] += 1
        # All have one mechanism, so the one with the most steps has spent the most.
        worst = max(range(number), key=ledger.steps)
        busiest.append(ledger.steps(worst))
        if ledger.epsilon(worst) > 2:
            exceeded.append(case)
    assert not exceeded
    assert max(busiest) > 0
