"""A run with canaries in its clients' data, through messages, sampling, hooks, clipping and noise."""

import math
from collections.abc import Callable
from dataclasses import replace

import numpy as np

from fedsvd.audit.canaries import Canaries, Layout, make_canaries
from fedsvd.audit.observed import Batches, Observed
from fedsvd.audit.watch import Watch, WatchedApp, planted
from fedsvd.client.app import make_client_app
from fedsvd.client.worker import Worker, get_worker
from fedsvd.engines.inline import InlineGrid
from fedsvd.errors import RunError
from fedsvd.experiment import prepare
from fedsvd.factors import factors_of
from fedsvd.records import travelling
from fedsvd.rounds.attempt import one_round
from fedsvd.rounds.participation import all_spent
from fedsvd.rounds.run import Run
from fedsvd.settings import AttackSettings, EngineSettings, FaultSettings, Settings
from fedsvd.strategies.base import Strategy
from fedsvd.strategies.build import build_strategy


def audited(settings: Settings) -> Settings:
    """Return the settings of the run that is audited in place of the given one.

    What comes after the noise, and costs no privacy, is made simple enough to be undone: plain SGD.
    Clients execute in this process, as the canaries are here. Nobody fails or attacks.
    """
    plain = replace(settings.training, optimizer="sgd", momentum=0.0, weight_decay=0.0)
    engine = replace(settings.engine, name="inline")
    assert isinstance(engine, EngineSettings)
    return replace(
        settings, training=plain, engine=engine, faults=FaultSettings(),
        attack=AttackSettings(),
    )  # fmt: skip


def run_with_canaries(
    settings: Settings,
    canaries: int,
    rounds: int | None = None,
    quiet: bool = True,
    tell: Callable[[str], None] = lambda _: None,
) -> Observed:
    """Run `rounds` rounds (default: all) of the audited run, unit example; return what was seen.

    `canaries` are dealt to the clients evenly. With `quiet` the clients' own examples take part in
    sampling and have no gradient; otherwise they train, which takes a run's own time and adds what
    they do to every score.
    """
    worker = get_worker(settings)
    strategy = build_strategy(settings.strategy)
    layout = sent_layout(worker, strategy)
    seen = Observed(worker.plan, quiet)
    first = len(worker.tokens.labels)
    number = settings.clients.number
    planted_in: dict[int, Canaries] = {}
    for client in range(number):
        each = canaries // number + int(client < canaries % number)
        if each:
            start = first + sum(len(c.rows) for c in planted_in.values())
            planted_in[client] = make_canaries(
                layout, client, each, start, settings.seed, worker.device
            )
    watch = Watch(worker, layout, planted_in, quiet, seen, first)
    app = WatchedApp(make_client_app(settings), watch)
    run = prepare(settings, strategy, InlineGrid(app, number))
    with planted(watch):
        rounds_run(run, settings.rounds if rounds is None else rounds, tell)
        _batches(watch)
    _finish(watch, run)
    return seen


def sent_layout(worker: Worker, strategy: object) -> Layout:
    """Return the layout of what clients train and do not keep to themselves."""
    keeps = strategy.keeps if isinstance(strategy, Strategy) else ()
    named = worker.initial.select(travelling(factors_of(worker.settings), keeps))
    return Layout(tuple(named), tuple(t.shape for t in named.values()))


def rounds_run(run: Run, rounds: int, tell: Callable[[str], None]) -> None:
    """Run rounds until `rounds` or until no client may take part; RunError if a client fails."""
    for number in range(1, rounds + 1):
        if all_spent(run):
            break
        failed = one_round(run, number).get("failed", {})
        for client, why in failed.items():
            raise RunError(f"round {number}: client {client} {why}")
        if number % max(1, rounds // 5) == 0:
            tell(f"pipeline: round {number} of {rounds}")


def _batches(watch: Watch) -> None:
    """Enter what every client drew."""
    for client, planned in enumerate(watch.worker.plan.clients):
        drawn = [s for (k, _), steps in watch.drawn.items() if k == client for s in steps]
        if drawn:
            part = np.sort(watch.worker.parts[client])
            ids = [np.searchsorted(part, np.asarray(d)) for d in drawn]
            watch.seen.batches.append(
                Batches(f"client {client}", len(part), planned.sample_rate, ids)
            )


def _finish(watch: Watch, run: Run) -> None:
    """Standardise scores by what the plan says of their noise, and read the ledger."""
    seen, inside, outside, theory = watch.seen, [], [], []
    for client, scores in watch.moved.items():
        own, planned = watch.canaries[client], watch.worker.plan.clients[client]
        steps = sum(n for (k, _), n in seen.steps.items() if k == client)
        deviation = planned.noise_multiplier * math.sqrt(steps)
        values = scores.double().cpu().numpy() / deviation
        expected = watch.expected[client].double().cpu().numpy() / deviation
        inside.append(values[own.inside])
        outside.append(values[~own.inside])
        theory.append(expected[own.inside])
    if inside:
        seen.inside, seen.outside = np.concatenate(inside), np.concatenate(outside)
        seen.theory = float(np.concatenate(theory).mean()) if len(seen.inside) else 0.0
    seen.rounds = run.state.round
    seen.ledger = {k: list(events) for k, events in run.ledger.events.items()}
    spent = run.ledger.epsilon_max()
    seen.epsilon = math.inf if spent is None else spent
