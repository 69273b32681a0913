"""A run as a reader would tell it: build the parts, loop over rounds, finish."""

import time
from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsvd import interrupt
from fedsvd.checkpoints.writer import CheckpointWriter
from fedsvd.client.app import make_client_app
from fedsvd.client.worker import Worker, get_worker
from fedsvd.engines.base import Engine
from fedsvd.engines.inline import InlineGrid
from fedsvd.errors import ClientsFailed, NothingTrained, TooFewReplies, wrong
from fedsvd.exports.export import export
from fedsvd.factors import factors_of
from fedsvd.privacy.client_level import make_mechanism
from fedsvd.privacy.ledger import Ledger
from fedsvd.recorders.recorder import Recorder
from fedsvd.records import BUDGET
from fedsvd.rounds.again import charge
from fedsvd.rounds.attempt import one_round
from fedsvd.rounds.averaging import include, model_state
from fedsvd.rounds.budget import settled
from fedsvd.rounds.describe import describe_end, describe_round, describe_start
from fedsvd.rounds.evaluation import evaluated, is_due, is_last, summarise
from fedsvd.rounds.participation import all_spent
from fedsvd.rounds.public import WorkerView
from fedsvd.rounds.run import Run
from fedsvd.rounds.start import check_start, movable, start_on_public
from fedsvd.rounds.trained import check_trained
from fedsvd.settings import Settings
from fedsvd.strategies.base import Strategy
from fedsvd.terminal import complain


def prepare(settings: Settings, strategy: FlowerStrategy, grid: Engine | None = None) -> Run:
    """Build data, plan, model, ledger and, if none is given, grid; what can be refused is here."""
    if grid is None and settings.engine.name == "ray":
        from fedsvd.engines.cluster import check_engine  # Ray is slow to import

        check_engine(settings.engine)
    check_start(settings, strategy)
    settings = settled(settings)
    worker = get_worker(settings, anew=True)
    if worker.left_out:
        complain(
            f"warning: adapter.targets: no adapter on {', '.join(worker.left_out)}, which gets no "
            "gradient: what the model puts out does not depend on it"
        )
    grid = grid or make_grid(settings, worker)
    start, losses = worker.initial, None
    if isinstance(strategy, Strategy):
        strategy.device, strategy.public = worker.device, WorkerView(worker)
    if settings.start.active:
        start, losses = start_on_public(
            start, WorkerView(worker), movable(settings, strategy), settings.start
        )
    if isinstance(strategy, Strategy):
        start = strategy.begin(start)
    run = Run(settings, worker, strategy, grid, Ledger(worker.plan), start)
    if grid.composes:
        run.orders = {BUDGET: settings.training.budget}
    run.started = losses
    run.rounds_taken, run.rounds = [0] * settings.clients.number, settings.rounds
    run.strategy_start = dict(vars(strategy))
    if worker.plan.unit == "client":
        run.client_level = make_mechanism(settings, worker.plan.clients[0].noise_multiplier)
    grid.expect(settings.clients.per_round)  # its workers start while round 0 is evaluated
    return run


def make_grid(settings: Settings, worker: Worker) -> Engine:
    """Return the configured engine for a run's clients."""
    if settings.partition.name == "own":
        raise wrong(
            "partition", "own", "another one here: clients' own data needs a deployment "
            "(docs/deployment.md)",
        )  # fmt: skip
    if settings.engine.name == "inline":
        app, deadline = make_client_app(settings), settings.faults.deadline
        return InlineGrid(app, settings.clients.number, deadline)
    from fedsvd.engines.ray import RayGrid, worker_settings  # Ray is slow to import

    told = worker_settings(
        settings, factors_of(settings), worker.plan.gradients, worker.kept is not None
    )
    costs = [c.sample_rate * c.examples for c in worker.plan.clients]
    make, deadline = partial(make_client_app, told), settings.faults.deadline
    return RayGrid(make, settings.clients.number, settings.engine, costs, deadline)


def train(
    run: Run, recorder: Recorder, folder: Path, resumed: Mapping[str, Any] | None = None
) -> dict[str, Any]:
    """Run all rounds, or until no client may take part any more, and return the summary.

    Checkpoints and exports go into `folder`. A run that was restored, from a checkpoint of the facts
    `resumed`, goes on after its last round. Raises Interrupted after the round in which a signal
    came, and RunError if it cannot go on, or if nothing has trained at its end; what is needed to
    resume is on the disk then.
    """
    checkpoints = CheckpointWriter(folder, resumed)
    run.began = time.perf_counter()
    recorder.start(describe_start(run))
    interrupt.training(True)
    try:
        if not run.history:
            _enter(run, {"round": 0, "clients": []}, recorder, checkpoints)
        run.setup_seconds = time.perf_counter() - run.asked
        while run.state.round < run.rounds and "ended" not in run.history[-1]:
            _stop_if_asked(run, recorder, checkpoints)
            metrics = one_round(run, run.state.round + 1)
            include(run)
            if all_spent(run) and run.state.round < run.rounds:
                metrics["ended"] = "no client may take part in another round"
            _enter(run, metrics, recorder, checkpoints)
        _stop_if_asked(run, recorder, checkpoints)
        check_trained(run.history)
    except (TooFewReplies, ClientsFailed, NothingTrained):
        _halt(run, recorder, checkpoints)
        raise
    finally:
        interrupt.training(False)
    charge(run, list(run.journal.open.values()))
    summary = summarise(run)
    export(run.worker, model_state(run), folder, summary)
    recorder.finish(describe_end(run, summary))
    return summary


def _enter(
    run: Run, metrics: dict[str, Any], recorder: Recorder, checkpoints: CheckpointWriter
) -> None:
    """Evaluate the state if that is due, and enter the round into history, records, checkpoints."""
    if is_due(run, metrics):
        metrics.update(evaluated(run, is_last(run, metrics)))
    metrics["seconds"] = run.seconds()
    run.history.append(metrics)
    recorder.round(describe_round(run))
    checkpoints.round(run)


def _stop_if_asked(run: Run, recorder: Recorder, checkpoints: CheckpointWriter) -> None:
    signum = interrupt.requested()
    if signum is not None:
        _halt(run, recorder, checkpoints)
        raise interrupt.Interrupted(signum, f"stopped after round {run.state.round}")


def _halt(run: Run, recorder: Recorder, checkpoints: CheckpointWriter) -> None:
    recorder.halt(run.ledger.as_dict())
    checkpoints.halt(run)
