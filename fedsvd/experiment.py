"""A run as a reader would tell it: build the parts, loop over rounds, finish."""

import time
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import Tensor

from fedsvd import records
from fedsvd.client.app import PART, make_client_app
from fedsvd.client.worker import Worker, get_worker
from fedsvd.engines.base import SERVER_NODE, Engine
from fedsvd.engines.inline import InlineGrid
from fedsvd.lowrank import AdapterState, spectra
from fedsvd.participation import participants
from fedsvd.privacy.client_level import ClientMechanism, make_mechanism, release
from fedsvd.privacy.ledger import Ledger
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.results.recorder import Recorder
from fedsvd.settings import Settings
from fedsvd.strategies.base import Strategy
from fedsvd.strategies.build import factors_of


@dataclass
class Run:
    """The parts of a run and where it stands."""

    settings: Settings
    worker: Worker
    strategy: FlowerStrategy
    grid: Engine
    ledger: Ledger
    state: AdapterState
    client_level: ClientMechanism | None = None
    rounds_taken: list[int] = field(default_factory=list)
    bytes_up: int = 0
    bytes_down: int = 0
    history: list[dict[str, Any]] = field(default_factory=list)


def prepare(settings: Settings, strategy: FlowerStrategy) -> Run:
    """Build data, plan, model, grid and ledger; everything that can be refused is refused here."""
    worker = get_worker(settings)
    grid = make_grid(settings, worker)
    if isinstance(strategy, Strategy):
        strategy.device = worker.device
    run = Run(settings, worker, strategy, grid, Ledger(worker.plan), worker.initial)
    run.rounds_taken = [0] * settings.clients.number
    if worker.plan.unit == "client":
        run.client_level = make_mechanism(settings, worker.plan.clients[0].noise_multiplier)
    return run


def make_grid(settings: Settings, worker: Worker) -> Engine:
    """Return the configured engine for a run's clients."""
    if settings.engine.name == "inline":
        return InlineGrid(make_client_app(settings), settings.clients.number)
    from fedsvd.engines.ray import RayGrid, worker_settings  # Ray is slow to import

    told = worker_settings(settings, factors_of(settings))
    costs = [c.sample_rate * c.examples for c in worker.plan.clients]
    return RayGrid(partial(make_client_app, told), settings.clients.number, settings.engine, costs)


def train(run: Run, recorder: Recorder) -> dict[str, Any]:
    """Run all rounds, or until no client may take part any more, and return the summary."""
    started = time.perf_counter()
    recorder.start(run)
    evaluate_round(run, recorder, {"round": 0, "clients": []}, started)
    for number in range(run.state.round + 1, run.settings.rounds + 1):
        metrics = one_round(run, number)
        if all_spent(run) and number < run.settings.rounds:
            metrics["ended"] = "no client may take part in another round"
        evaluate_round(run, recorder, metrics, started)
        if "ended" in metrics:
            break
    return finish(run, recorder, started)


def may_take_part(run: Run, client: int) -> bool:
    """Return whether the client is below the bound on its rounds and within its budget."""
    below = run.rounds_taken[client] < run.worker.plan.rounds_bound
    return below and not run.ledger.would_exceed(client)


def all_spent(run: Run) -> bool:
    """Return whether no client may take part in another round."""
    return not any(may_take_part(run, k) for k in range(run.settings.clients.number))


def one_round(run: Run, number: int) -> dict[str, Any]:
    """Draw the clients, let them train, account, aggregate; return the round's metrics."""
    settings, plan, began = run.settings, run.worker.plan, time.perf_counter()
    draw = participants(
        settings.clients, plan.rounds_bound, settings.seed, number, run.rounds_taken
    )
    spent = [k for k in draw.clients if run.ledger.would_exceed(k)]
    drawn = [k for k in draw.clients if k not in spent]
    sat_out = sorted({*draw.at_bound, *spent})
    metrics: dict[str, Any] = {"round": number, "clients": drawn, "sat_out": sat_out}
    # Where a trusted server hides who takes part, a round of nobody is a release like any other.
    hidden = plan.threat_model == "trusted_server"
    if not drawn and not hidden:
        run.state = replace(run.state, round=number)
        return metrics

    run.grid.invite(drawn)
    messages: list[Message] = []
    config = ConfigRecord()
    if drawn or isinstance(run.strategy, Strategy):
        arrays = _global_arrays(run)
        messages = list(run.strategy.configure_train(number, arrays, config, run.grid))
    asked = sorted(m.metadata.dst_node_id for m in messages)
    down = sum(records.record_bytes(records.arrays_of(m)) for m in messages)
    replies = sorted(run.grid.send_and_receive(messages), key=lambda r: r.metadata.src_node_id)
    wanted = _asked_for(run, config)
    faults = {r.metadata.src_node_id: records.fault(r, wanted) for r in replies}
    faults.update({k: "did not answer" for k in asked if k not in faults})
    good = [r for r in replies if faults[r.metadata.src_node_id] is None]
    reports = {r.metadata.src_node_id: records.report_of(r) for r in replies}
    steps = {k: int(report["steps"]) for k, report in reports.items() if "steps" in report}
    run.ledger.record_round(number, asked, steps)
    for client in asked:
        run.rounds_taken[client] += 1
    up = sum(records.record_bytes(records.arrays_of(r)) for r in good)
    metrics.update(_train_metrics(run, {k: reports[k] for k in asked if faults[k] is None}))
    if run.client_level is not None:
        good = [_noised(run, good, wanted, number, metrics)]
    result = run.strategy.aggregate_train(number, good)[0] if good else None
    state = run.state if result is None else run.state.update(_tensors(run, result))
    run.state = replace(state, round=number)
    run.bytes_up, run.bytes_down = run.bytes_up + up, run.bytes_down + down
    failed = {str(k): why for k, why in faults.items() if why is not None}
    metrics.update({"failed": failed, "bytes_up": up, "bytes_down": down})
    metrics["train_seconds"] = time.perf_counter() - began
    return metrics


def _asked_for(run: Run, config: ConfigRecord) -> dict[str, Tensor]:
    """Return the tensors that a client must send back, with the values it started from."""
    trains, keeps = records.in_round(config, factors_of(run.settings))
    return run.state.select((*(kind for kind in trains if kind not in keeps), "extra"))


def _noised(
    run: Run, good: Sequence[Message], wanted: Mapping[str, Tensor], number: int,
    metrics: dict[str, Any],
) -> Message:  # fmt: skip
    """Return one reply that holds the noised mean of the clients', and note the clip used."""
    settings, device = run.settings, run.worker.device
    assert run.client_level is not None
    generator = None
    if not run.worker.plan.secure_noise:
        generator = torch_stream(settings.seed, Purpose.NOISE, number, "server", device=device)
    updates = [records.from_record(records.arrays_of(r), device) for r in good]
    metrics["clip_norm"] = run.client_level.clip_norm
    mean, run.client_level, norms = release(updates, wanted, run.client_level, generator)
    if settings.privacy.diagnostics and len(norms):
        metrics["update_norms"] = norms.tolist()
    metrics_record = MetricRecord({records.WEIGHT: 1.0})
    content = RecordDict({records.ARRAYS: records.to_record(mean), records.METRICS: metrics_record})
    return Message(content, dst_node_id=SERVER_NODE, message_type=MessageType.TRAIN)


def _global_arrays(run: Run) -> ArrayRecord:
    """Return what the strategy is given: all of the state, or for a stock one what trains of it."""
    tensors = run.state.tensors()
    if not isinstance(run.strategy, Strategy):
        tensors = {n: t for n, t in tensors.items() if n in run.worker.model.trainable()}
    return records.to_record(tensors)


def _tensors(run: Run, arrays: ArrayRecord) -> dict[str, Any]:
    """Return aggregated arrays as tensors in the dtypes and on the device of the state.

    A strategy may add tensors that the state did not have (see `AdapterState.update`).
    """
    like = run.state.tensors()
    found = records.from_record(arrays, run.worker.device)
    return {
        n: t.to(like[n].dtype).reshape(like[n].shape) if n in like else t for n, t in found.items()
    }


def _train_metrics(run: Run, reports: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Return means over clients of what they reported, and what the clients have spent."""
    losses = [r["loss"] for r in reports.values() if "loss" in r]
    return {
        "train_loss": float(np.mean(losses)) if losses else None,
        "reports": {str(k): report for k, report in reports.items()},
        "epsilon": {str(c.client): run.ledger.epsilon(c.client) for c in run.ledger.plan.clients},
        "epsilon_max": run.ledger.epsilon_max(),
    }


def evaluate(run: Run, part: str) -> dict[str, float]:
    """Return accuracy and loss on a part of the task, "validation" or "test".

    They are the global model's, or, where clients keep factors of their own, the mean of all clients'
    models. What those tell of private data is outside any guarantee, as diagnostics are.
    """
    strategy, worker = run.strategy, run.worker
    keeps = isinstance(strategy, Strategy) and set(strategy.keeps) & set(factors_of(run.settings))
    if not keeps or (worker.plan.private and not run.settings.privacy.diagnostics):
        rows = worker.task.test if part == "test" else worker.task.validation
        return worker.evaluate(run.state, rows)
    run.grid.invite(range(run.settings.clients.number))
    content = RecordDict(
        {
            records.ARRAYS: records.to_record(run.state.tensors()),
            records.CONFIG: ConfigRecord({PART: part}),
        }
    )
    replies = run.grid.send_and_receive(
        [Message(content, node, MessageType.EVALUATE) for node in run.grid.get_node_ids()]
    )
    found = [records.metrics_of(r) for r in replies if not r.has_error()]
    return {key: float(np.mean([m[key] for m in found])) for key in ("accuracy", "loss")}


def evaluate_round(run: Run, recorder: Recorder, metrics: dict[str, Any], started: float) -> None:
    """Evaluate the global state on the validation part if the round is due, and record the round."""
    number, every = metrics["round"], run.settings.recorder.evaluate_every
    if number % every == 0 or number == run.settings.rounds or "ended" in metrics:
        metrics.update(evaluate(run, "validation"))
    metrics["seconds"] = time.perf_counter() - started
    run.history.append(metrics)
    recorder.round(run, metrics)


def finish(run: Run, recorder: Recorder, started: float) -> dict[str, Any]:
    """Evaluate on the test part, once, and return and record the summary."""
    settings, task = run.settings, run.worker.task
    test = evaluate(run, "test") if len(task.test) else {}
    scored = [m for m in run.history if "accuracy" in m]
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
        "unit": run.ledger.plan.unit,
        "epsilon_target": run.ledger.plan.epsilon,
        "epsilon_max": run.ledger.epsilon_max(),
        "delta": run.ledger.plan.delta,
        "bytes_up": run.bytes_up,
        "bytes_down": run.bytes_down,
        "ended": run.history[-1].get("ended"),
        "failures": sum(len(m.get("failed", {})) for m in run.history),
        "precision": run.worker.precision,
        "device": str(run.worker.device),
        "state_digest": run.state.digest(),
        "singular_values": spectra(run.state),
        "seconds": time.perf_counter() - started,
    }  # fmt: skip
    recorder.finish(run, summary)
    return summary
