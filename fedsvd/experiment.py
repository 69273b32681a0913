"""A run as a reader would tell it: build the parts, loop over rounds, finish."""

import time
from collections.abc import Sequence
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsvd import records
from fedsvd.client.app import make_client_app
from fedsvd.client.worker import Worker, get_worker
from fedsvd.engines.inline import InlineGrid
from fedsvd.lowrank import AdapterState, singular_values
from fedsvd.participation import participants
from fedsvd.privacy.ledger import Ledger
from fedsvd.results.recorder import Recorder
from fedsvd.settings import Settings
from fedsvd.strategies.base import Strategy


@dataclass
class Run:
    """The parts of a run and where it stands."""

    settings: Settings
    worker: Worker
    strategy: FlowerStrategy
    grid: InlineGrid
    ledger: Ledger
    state: AdapterState
    rounds_taken: list[int] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def prepare(settings: Settings, strategy: FlowerStrategy) -> Run:
    """Build data, plan, model, grid and ledger; everything that can be refused is refused here."""
    worker = get_worker(settings)
    grid = InlineGrid(make_client_app(settings), settings.clients.number)
    if isinstance(strategy, Strategy):
        strategy.device = worker.device
    taken = [0] * settings.clients.number
    return Run(settings, worker, strategy, grid, Ledger(worker.plan), worker.initial, taken)


def train(run: Run, recorder: Recorder) -> dict[str, Any]:
    """Run all rounds and return the summary."""
    started = time.perf_counter()
    recorder.start(run)
    evaluate_round(run, recorder, {"round": 0, "clients": []}, started)
    for number in range(run.state.round + 1, run.settings.rounds + 1):
        metrics = one_round(run, number)
        evaluate_round(run, recorder, metrics, started)
    return finish(run, recorder, started)


def one_round(run: Run, number: int) -> dict[str, Any]:
    """Draw the clients, let them train, aggregate, account; return the round's metrics."""
    settings, began = run.settings, time.perf_counter()
    drawn = participants(settings.clients, settings.rounds, settings.seed, number, run.rounds_taken)
    steps = settings.training.local_steps
    spent_out = [k for k in drawn if run.ledger.would_exceed(k, steps)]
    drawn = [k for k in drawn if k not in spent_out]
    metrics: dict[str, Any] = {"round": number, "clients": drawn, "sat_out": spent_out}
    if not drawn:
        run.state = replace(run.state, round=number)
        return metrics

    run.grid.invite(drawn)
    messages = list(
        run.strategy.configure_train(number, _global_arrays(run), ConfigRecord(), run.grid)
    )
    down = sum(records.record_bytes(records.arrays_of(m)) for m in messages)
    replies = sorted(run.grid.send_and_receive(messages), key=lambda r: r.metadata.src_node_id)
    asked = {m.metadata.dst_node_id for m in messages}
    sent = {n: t for n, t in run.state.tensors().items() if n in run.worker.model.trainable()}
    faults = {r.metadata.src_node_id: records.fault(r, sent) for r in replies}
    good = [r for r in replies if faults[r.metadata.src_node_id] is None]
    for client in sorted(asked):
        # A client that failed may have stepped: without its word, the whole round is charged.
        reply = next((r for r in replies if r.metadata.src_node_id == client), None)
        told = records.report_of(reply).get("steps") if reply and not reply.has_error() else None
        run.ledger.record(client, number, int(told) if told is not None else steps)
        run.rounds_taken[client] += 1
    up = sum(records.record_bytes(records.arrays_of(r)) for r in good)
    arrays = run.strategy.aggregate_train(number, good)[0] if good else None
    state = run.state if arrays is None else run.state.update(_tensors(run, arrays))
    run.state = replace(state, round=number)
    run.bytes_up, run.bytes_down = run.bytes_up + up, run.bytes_down + down
    metrics.update(_train_metrics(run, good, [k for k in asked if faults.get(k, "") is not None]))
    failed = {str(k): why for k, why in faults.items() if why is not None}
    metrics.update({"failed": failed, "bytes_up": up, "bytes_down": down})
    metrics["train_seconds"] = time.perf_counter() - began
    return metrics


def _global_arrays(run: Run) -> ArrayRecord:
    """Return what the strategy is given: all of the state, or for a stock one what trains of it."""
    tensors = run.state.tensors()
    if not isinstance(run.strategy, Strategy):
        tensors = {n: t for n, t in tensors.items() if n in run.worker.model.trainable()}
    return records.to_record(tensors)


def _tensors(run: Run, arrays: ArrayRecord) -> dict[str, Any]:
    """Return aggregated arrays as tensors in the dtypes and on the device of the state."""
    like = run.state.tensors()
    found = records.from_record(arrays, run.worker.device)
    return {n: t.to(like[n].dtype).reshape(like[n].shape) for n, t in found.items()}


def _train_metrics(run: Run, good: Sequence[Message], failed: Sequence[int]) -> dict[str, Any]:
    """Return means over clients of what they reported, and what the clients have spent."""
    reports = {str(r.metadata.src_node_id): records.report_of(r) for r in good}
    losses = [r["loss"] for r in reports.values() if "loss" in r]
    return {
        "train_loss": float(np.mean(losses)) if losses else None,
        "reports": reports,
        "epsilon": {str(c.client): run.ledger.epsilon(c.client) for c in run.ledger.plan.clients},
        "epsilon_max": run.ledger.epsilon_max(),
    }


def evaluate_round(run: Run, recorder: Recorder, metrics: dict[str, Any], started: float) -> None:
    """Evaluate the global state on the validation part if the round is due, and record the round."""
    number, every = metrics["round"], run.settings.recorder.evaluate_every
    if number % every == 0 or number == run.settings.rounds:
        metrics.update(run.worker.evaluate(run.state, run.worker.task.validation))
    metrics["seconds"] = time.perf_counter() - started
    run.history.append(metrics)
    recorder.round(run, metrics)


def finish(run: Run, recorder: Recorder, started: float) -> dict[str, Any]:
    """Evaluate on the test part, once, and return and record the summary."""
    settings, task = run.settings, run.worker.task
    test = run.worker.evaluate(run.state, task.test) if len(task.test) else {}
    scored = [m for m in run.history if "accuracy" in m]
    spectra = {k: singular_values(p).tolist() for k, p in run.state.factors.items()}
    summary = {
        "strategy": settings.strategy.target,
        "adapter": settings.adapter.name if settings.adapter.name == "none" else
        f"{settings.adapter.name}/{settings.adapter.init}",
        "task": task.name,
        "model": settings.model.name,
        "head": settings.model.head,
        "seed": settings.seed,
        "rounds_completed": run.state.round,
        "accuracy": scored[-1]["accuracy"],
        "best_accuracy": max(m["accuracy"] for m in scored),
        "loss": scored[-1]["loss"],
        "test_accuracy": test.get("accuracy"),
        "test_loss": test.get("loss"),
        "epsilon_target": settings.privacy.epsilon if run.ledger.plan.private else None,
        "epsilon_max": run.ledger.epsilon_max(),
        "delta": settings.privacy.delta if run.ledger.plan.private else None,
        "bytes_up": run.bytes_up,
        "bytes_down": run.bytes_down,
        "failures": sum(len(m.get("failed", {})) for m in run.history),
        "precision": run.worker.precision,
        "device": str(run.worker.device),
        "state_digest": run.state.digest(),
        "singular_values": spectra,
        "seconds": time.perf_counter() - started,
    }  # fmt: skip
    recorder.finish(run, summary)
    return summary
