"""What a run is worth: accuracy of its rounds and of its end, replies left out, the summary."""

from collections.abc import Mapping, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedsvd import records
from fedsvd.client.app import PART
from fedsvd.lowrank import spectra
from fedsvd.results.recorder import Recorder
from fedsvd.strategies.base import Strategy
from fedsvd.strategies.build import factors_of

if TYPE_CHECKING:
    from fedsvd.experiment import Run


def evaluate(run: "Run", part: str) -> dict[str, float]:
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


def evaluate_round(run: "Run", recorder: Recorder, metrics: dict[str, Any]) -> None:
    """Evaluate the global state on the validation part if the round is due, and record the round."""
    number, every = metrics["round"], run.settings.recorder.evaluate_every
    if number % every == 0 or number == run.rounds or "ended" in metrics:
        metrics.update(evaluate(run, "validation"))
    metrics["seconds"] = run.seconds()
    run.history.append(metrics)
    recorder.round(run, metrics)


def reasons(history: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many replies were left out for what reason, in all attempts at all rounds."""
    counts: dict[str, int] = {}
    for metrics in history:
        for failed in (metrics.get("failed", {}), *metrics.get("failed_attempts", ())):
            for why in failed.values():
                counts[why] = counts.get(why, 0) + 1
    return dict(sorted(counts.items()))


def finish(run: "Run", recorder: Recorder) -> dict[str, Any]:
    """Evaluate on the test part, once, and return and record the summary."""
    settings, task = run.settings, run.worker.task
    test = evaluate(run, "test") if len(task.test) else {}
    scored = [m for m in run.history if "accuracy" in m]
    summary = {
        "strategy": settings.strategy.target,
        "adapter": settings.adapter.label,
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
        "gradients": run.ledger.plan.gradients,
        "bytes_up": run.bytes_up,
        "bytes_down": run.bytes_down,
        "ended": run.history[-1].get("ended"),
        "failures": sum(reasons(run.history).values()),
        "failure_reasons": reasons(run.history),
        "precision": run.worker.precision,
        "device": str(run.worker.device),
        "attack": settings.attack.name,
        "state_digest": run.state.digest(),
        "singular_values": spectra(run.state),
        "seconds": run.seconds(),
    }  # fmt: skip
    recorder.finish(run, summary)
    return summary
