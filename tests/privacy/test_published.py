import math

import dp_accounting as dpa
import numpy as np
import pytest
import torch
from dp_accounting.pld import PLDAccountant

from fedsvd.privacy import accounting, gaussian
from fedsvd.privacy.__main__ import main
from fedsvd.privacy.dpsgd import make_optimizer
from fedsvd.privacy.ledger import Ledger
from fedsvd.privacy.plan import make_plan
from fedsvd.privacy.published import GRID, MOST_NOISES, mean_events, published
from fedsvd.randomness import Purpose, numpy_stream

SIZES = [300, 200, 100, 250, 150, 200]


def ledger_of(settings, *given):
    return Ledger(make_plan(settings("privacy.accountant=pld", "rounds=8", *given), SIZES))


def balanced(ledger, rounds=8, members=3):
    for number in range(1, rounds + 1):
        clients = list(range(3)) if number % 2 else list(range(3, 6))
        ledger.record_round(number, clients, {})
        ledger.record_mean(number, clients[:members])


def theirs(events, delta):
    """dp-accounting's own accountant over its own events."""
    account = PLDAccountant(value_discretization_interval=1e-4)
    for sigma, rate, steps in events:
        account.compose(dpa.PoissonSampledDpEvent(rate, dpa.GaussianDpEvent(sigma)), steps)
    return account.get_epsilon(delta)


@pytest.mark.parametrize("local_steps", [1, 2, 5])
def test_against_dp_accounting(settings, local_steps):
    ledger = ledger_of(settings, f"training.local_steps={local_steps}")
    balanced(ledger)
    planned = ledger.plan.clients[0]
    sigma, rate = planned.noise_multiplier, planned.accounted_rate
    events = [(sigma * math.sqrt(3), rate, 4)]
    if local_steps > 1:
        events.append((sigma, rate, 4 * (local_steps - 1)))
    expected = theirs(events, ledger.plan.delta)
    found = published(ledger, [1.0] * 6)
    assert found[0].epsilon == pytest.approx(expected, rel=5e-3)
    assert {c.epsilon for c in found.values()} == {found[0].epsilon}
    assert found[0].epsilon < ledger.epsilon(0)


def test_whoever_is_alone_or_left_out_gains_nothing(settings):
    ledger = ledger_of(settings, "training.local_steps=2")
    balanced(ledger, members=1)
    for client, cost in published(ledger, [1.0] * 6).items():
        assert cost.epsilon == ledger.epsilon(client)


def test_of_a_repeated_round_only_the_last_attempt_was_averaged(settings):
    ledger = ledger_of(settings, "training.local_steps=1")
    ledger.record_round(1, [0, 1, 2], {})
    ledger.record_round(1, [0, 1, 2], {})
    ledger.record_mean(1, [0, 1])
    planned = ledger.plan.clients[0]
    sigma, rate = planned.noise_multiplier, planned.accounted_rate
    expected = accounting.epsilon(
        [(sigma, rate, 1), (sigma * math.sqrt(2), rate, 1)], ledger.plan.delta, "pld"
    )
    found = published(ledger, [1.0] * 6)
    assert found[0].epsilon == found[1].epsilon == pytest.approx(expected, rel=1e-9)
    assert found[2].epsilon == ledger.epsilon(2)
    again = Ledger(ledger.plan)
    again.load_events(ledger.events_as_dict())
    assert published(again, [1.0] * 6) == found


def test_weights_rates_and_noises_of_one_round_may_differ(settings):
    """By hand: p = n / 600; what lies on client 0's sum is measured in its p C / b."""
    ledger = ledger_of(settings, "training.local_steps=1", "privacy.public_counts=true")
    ledger.record_round(1, [0, 1, 2], {})
    ledger.record_mean(1, [0, 1, 2])
    clients = ledger.plan.clients
    parts = [SIZES[k] * clients[k].noise_multiplier / clients[k].expected_batch for k in range(3)]
    unit = SIZES[0] / clients[0].expected_batch
    joint = math.sqrt(sum(x * x for x in parts)) / unit
    none, event = mean_events(ledger.events[0][0], parts[0], parts[1:])
    assert none[2] == 0
    assert event == (pytest.approx(joint), clients[0].accounted_rate, 1)
    found = published(ledger, [float(n) for n in SIZES])
    expected = theirs([(joint, clients[0].accounted_rate, 1)], ledger.plan.delta)
    assert found[0].epsilon == pytest.approx(expected, rel=5e-3)


def test_many_kinds_of_noise_are_rounded_towards_less(settings):
    ledger = ledger_of(settings, "training.local_steps=1", "clients.participation=all")
    for number in range(1, 7):
        ledger.record_round(number, range(6), {})
        ledger.record_mean(number, range(number))
    planned = ledger.plan.clients[0]
    exact = [
        (planned.noise_multiplier * math.sqrt(n), planned.accounted_rate, 1) for n in range(1, 7)
    ]
    assert len(exact) > MOST_NOISES
    found = published(ledger, [1.0] * 6)[0].epsilon
    lowest = accounting.epsilon(exact, ledger.plan.delta, "pld")
    assert lowest * 0.998 <= found <= lowest * GRID**2


def toy(a, others, sigma, steps=2):
    """The exact mu of a scalar run of one round, as all its maps are linear and nothing is sampled.

    Client k: y <- a y - (g + noise) in each step, its example adding 1 to g every time; the others
    y <- noise each step, as their map forgets. The mean's shift over its deviation.
    """
    shift = sum(a**i for i in range(steps))
    own = sum(a ** (2 * i) for i in range(steps))
    return shift / (sigma * math.sqrt(own + others))


@pytest.mark.parametrize("steps", [1, 2, 3])
@pytest.mark.parametrize("clients", [1, 2, 3, 10])
def test_no_linear_client_beats_the_bound_and_one_reaches_it(clients, steps):
    sigma = 2.0
    events = [(sigma, 1.0, steps - 1), (sigma * math.sqrt(clients), 1.0, 1)]
    bound = gaussian.composed((s, n) for s, _, n in events)
    found = [toy(a, clients - 1, sigma, steps) for a in np.linspace(-20, 20, 4001)]
    assert max(found) <= bound * (1 + 1e-12)
    if steps == 2:  # at a = clients the bound is exact: no better one holds for every model
        assert toy(clients, clients - 1, sigma) == pytest.approx(bound, rel=1e-12)
        naive = math.sqrt(steps / clients) / sigma  # as if all noise lay on all steps
        assert clients == 1 or max(found) > 1.2 * naive


def test_the_toy_by_the_steps_that_clients_take():
    """20,000 rounds of three clients with the real optimiser: shift and deviation as in `toy`."""
    clients, a, sigma, runs = 3, 3.0, 2.0, 20_000
    generator = numpy_stream(3, Purpose.NOISE)

    def end(factor, example):
        weight = torch.nn.Parameter(torch.zeros(runs))
        optimizer = make_optimizer(
            torch.optim.SGD([weight], lr=1.0), noise_multiplier=sigma, clip_norm=1.0,
            expected_batch=1.0, generator=generator,
        )  # fmt: skip
        for _ in range(2):
            with torch.no_grad():
                weight *= factor
            # One coordinate a run, so nothing is clipped: the gradient is set where it is summed.
            weight.grad_sample = torch.zeros(0, runs)
            optimizer.clip_and_accumulate()
            weight.summed_grad = weight.summed_grad - example
            optimizer.add_noise()
            with torch.no_grad():
                weight -= weight.grad
            weight.summed_grad = None
        return weight.detach().double()

    without, with_it = (
        (end(a, example) + sum(end(0.0, 0.0) for _ in range(clients - 1))) / clients
        for example in (0.0, 1.0)
    )
    mu = float((with_it.mean() - without.mean()) / without.std())
    assert mu == pytest.approx(toy(a, clients - 1, sigma), abs=0.03)
    naive = math.sqrt(2 / clients) / sigma
    assert mu > naive + 0.1


def test_the_command_prints_the_second_figure(capsys):
    line = "--sample-rate 0.1 --steps 50 --noise-multiplier 3 --mean-of 3 --local-steps"
    for local_steps, events in [
        (1, [(3 * math.sqrt(3), 0.1, 50)]), (2, [(3.0, 0.1, 25), (3 * math.sqrt(3), 0.1, 25)])
    ]:  # fmt: skip
        assert main([*line.split(), str(local_steps), "--accountant", "pld"]) == 0
        row = capsys.readouterr().out.splitlines()[-1]
        assert float(row.split()[3]) == pytest.approx(theirs(events, 1e-5), rel=5e-3)
    assert main([*line.split(), "3"]) == 2
    assert "--local-steps" in capsys.readouterr().err
