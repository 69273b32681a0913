"""Checks of the real code that a run's guarantee stands on; `test_proofs` runs them as they are,
`test_mutations` runs them on planted bugs.
"""

import math
from collections import Counter
from dataclasses import replace
from unittest.mock import patch

import dp_accounting as dpa
import numpy as np
import torch
from dp_accounting.pld import PLDAccountant
from scipy.stats import chi2

from fedsvd.client import app, training
from fedsvd.client.worker import Worker, get_worker
from fedsvd.experiment import prepare
from fedsvd.privacy import client_level
from fedsvd.privacy.dpsgd import StepReport
from fedsvd.privacy.ledger import Ledger
from fedsvd.privacy.plan import make_plan
from fedsvd.rounds.attempt import one_round
from fedsvd.rounds.participation import participants
from fedsvd.strategies.build import build_strategy
from tests.conftest import SMALL, compose_settings

# Of a small real BERT, which conftest makes; with 2,000 numbers in an upload their variance is known
# to 15 %.
OVERRIDES: list[str] = []
MORE = [
    "privacy.accountant=prv", "rounds=4", "training.schedule=constant", "adapter.rank=8",
    "training.batch_size=8", "training.local_steps=2",
]  # fmt: skip


def the_worker() -> Worker:
    return get_worker(compose_settings(*OVERRIDES))


def the_default_worker() -> Worker:
    """Of the default model, every factor of which has gradients far above rounding."""
    return get_worker(compose_settings(*SMALL, "data.limit=120", "training.schedule=constant"))


def planned(worker, client, **changes):
    """The worker with one client's plan changed."""
    clients = list(worker.plan.clients)
    clients[client] = replace(clients[client], **changes)
    return replace(worker, plan=replace(worker.plan, clients=tuple(clients)))


def moved(worker, client, round):
    """What local training changes, as one vector."""
    before, after = (
        s.tensors() for s in (
            worker.initial, training.train_locally(worker, worker.initial, client, round).state
        )
    )  # fmt: skip
    names = worker.model.trainable()
    return torch.cat([(after[n] - before[n]).flatten() for n in names]).double().numpy()


def in_chi_square_range(values):
    low, high = chi2.ppf([1e-6, 1 - 1e-6], len(values))
    return low < (values**2).sum() < high


def independent_epsilon(sigma, rate, steps, delta):
    """By Google's accountant, asked directly."""
    ledger = PLDAccountant()
    ledger.compose(dpa.PoissonSampledDpEvent(rate, dpa.GaussianDpEvent(sigma)), steps)
    return ledger.get_epsilon(delta)


def check_noise():
    """Uploads of zero gradients are the planned noise, fresh for every client, round and step."""
    worker = the_worker()
    real = Worker.losses
    settings, plan = worker.settings, worker.plan.clients[0]
    uploads = []
    with patch.object(Worker, "losses", lambda self, rows, **how: 0 * real(self, rows, **how)):
        for client, round, shared in (
            (0, 1, worker), (1, 1, worker), (0, 2, worker),
            (0, 3, planned(worker, 0, sample_rate=1e-12)),  # every batch is empty
        ):  # fmt: skip
            lr = training.learning_rate(settings.training, round, settings.rounds)
            step = lr * plan.noise_multiplier * settings.privacy.clip_norm / plan.expected_batch
            deviation = step * math.sqrt(settings.training.local_steps)
            uploads.append(moved(shared, client, round) / deviation)
    for values in uploads:
        assert in_chi_square_range(values), "the noise has not the planned variance"
    for i in range(len(uploads)):
        for j in range(i):
            correlation = np.corrcoef(uploads[i], uploads[j])[0, 1]
            assert abs(correlation) < 5 / math.sqrt(len(uploads[i])), "noise was used twice"


def check_neighbours():
    """A hostile example moves a step's clipped sum by at most the clip."""
    worker = planned(the_default_worker(), 0, sample_rate=1.0, noise_multiplier=0.0)
    settings = worker.settings
    worker = replace(
        worker, settings=replace(settings, training=replace(settings.training, local_steps=1))
    )
    rows = worker.parts[0][:9]
    hostile = int(rows[0])
    real = Worker.losses

    def losses(self, rows, **how):
        sign = torch.tensor([-1e6 if int(r) == hostile else 1.0 for r in rows])
        return sign * real(self, rows, **how)

    steps = []
    with patch.object(Worker, "losses", losses):
        for kept in (rows, rows[1:]):
            parts = [kept, *worker.parts[1:]]
            steps.append(moved(replace(worker, parts=parts), 0, 1))
    scale = settings.training.lr / worker.plan.clients[0].expected_batch
    gap = np.linalg.norm(steps[0] - steps[1]) / scale
    assert gap <= settings.privacy.clip_norm * (1 + 1e-4), "an example moves more than the clip"


def check_poisson():
    """The sizes of the batches are binomial, as the accounting assumes."""
    worker = the_worker()
    sizes = []

    def record(optimizer, groups, losses):
        sizes.append(sum(len(g) for g in groups))
        return StepReport(sizes[-1], 0.0, torch.zeros(0))

    scores = []
    with patch.object(training, "dp_step", record):
        for client, plan in enumerate(worker.plan.clients):
            sizes.clear()
            for round in range(1, 41):
                training.train_locally(worker, worker.initial, client, round)
            n, q = len(worker.parts[client]), plan.sample_rate
            scores += [(s - n * q) / math.sqrt(n * q * (1 - q)) for s in sizes]
    count = len(scores)
    assert abs(np.mean(scores)) < 5 / math.sqrt(count), "batches have not the planned rate"
    assert abs(np.var(scores) - 1) < 5 * math.sqrt(3 / count), "batches are not Poisson samples"


def check_ledger():
    """The ledger says what an independent accountant says of the steps that were counted here."""
    settings = compose_settings(*OVERRIDES)
    run = prepare(settings, build_strategy(settings.strategy))
    counted, now = Counter(), []
    real = app.train_locally

    def train(worker, state, client, *rest):
        now[:] = [client]
        return real(worker, state, client, *rest)

    def step(optimizer, groups, losses):
        counted[now[0]] += 1
        return StepReport(0, math.nan, torch.zeros(0))

    with patch.object(app, "train_locally", train), patch.object(training, "dp_step", step):
        for number in range(1, settings.rounds + 1):
            one_round(run, number)
    assert sum(counted.values()) == settings.rounds * 3 * settings.training.local_steps
    for client, steps in counted.items():
        plan = run.worker.plan.clients[client]
        expected = independent_epsilon(
            plan.noise_multiplier, plan.sample_rate, steps, settings.privacy.delta
        )
        found = run.ledger.epsilon(client)
        assert abs(found / expected - 1) < 0.01, "the ledger does not say what was spent"


def check_target():
    """The client with the most rounds is within the target, by an independent accountant."""
    settings = compose_settings(
        *OVERRIDES, "clients.participation=uniform", "rounds=30", "clients.number=12",
        "training.batch_size=100", "data.public_size=7200",
    )  # fmt: skip
    plan = make_plan(settings, [600] * 12)
    ledger, taken = Ledger(plan), [0] * 12
    for round in range(1, 31):
        draw = participants(settings.clients, plan.rounds_bound, 0, round, taken)
        asked = [k for k in draw.clients if not ledger.would_exceed(k)]
        ledger.record_round(round, asked, {})
        for k in asked:
            taken[k] += 1
    busiest = max(range(12), key=ledger.steps)
    assert taken[busiest] > 30 * 3 / 12  # it took part more often than the mean
    spent = independent_epsilon(
        plan.clients[busiest].noise_multiplier, plan.clients[busiest].accounted_rate,
        ledger.steps(busiest), settings.privacy.delta,
    )  # fmt: skip
    assert spent <= 1.0, "a client is above its target"


def check_server_noise():
    """What the server releases under client-level privacy carries the planned noise."""
    base = {"q.B": torch.zeros(100, 80)}
    mechanism = client_level.ClientMechanism(0.5, 4.0, 10.0)
    released = []
    for seed in (0, 1):
        generator = np.random.default_rng(seed)
        mean = client_level.release([base, base], base, mechanism, generator)[0]
        released.append(mean["q.B"].flatten().double().numpy() / (4.0 * 0.5 / 10.0))
    assert all(in_chi_square_range(r) for r in released), "the noise has not the planned variance"


CHECKS = {
    f.__name__: f
    for f in (check_noise, check_neighbours, check_poisson, check_ledger, check_target,
              check_server_noise)
}  # fmt: skip
