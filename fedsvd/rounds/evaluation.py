"""What a state is worth, and what a whole run comes to."""

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedsvd import records
from fedsvd.client.app import PART
from fedsvd.factors import factors_of
from fedsvd.lowrank import spectra
from fedsvd.privacy.plan import noise_source
from fedsvd.rounds.averaging import describe, model_state
from fedsvd.rounds.published import published_figure
from fedsvd.rounds.run import Run
from fedsvd.strategies.base import Strategy


def evaluated(run: Run) -> dict[str, float]:
    """Return accuracy and loss on the validation part.

    Where models are averaged they are the average's; `raw_accuracy`, `raw_loss` the last one's.
    """
    found = evaluate(run, "validation")
    if run.average is not None:
        raw = run.worker.evaluate(run.state, run.worker.task.validation)
        found.update({f"raw_{key}": value for key, value in raw.items()})
    return found


def evaluate(run: Run, part: str) -> dict[str, float]:
    """Return accuracy and loss on a part of the task, "validation" or "test".

    They are the global model's, averaged if so set, or, where clients keep factors of their own, the
    mean of all clients' models. What those tell of private data is outside any guarantee, as
    diagnostics are.
    """
    strategy, worker = run.strategy, run.worker
    kinds = {*factors_of(run.settings), "extra"}
    keeps = isinstance(strategy, Strategy) and set(strategy.keeps) & kinds
    if not keeps or (worker.plan.private and not run.settings.privacy.diagnostics):
        rows = worker.task.test if part == "test" else worker.task.validation
        return worker.evaluate(model_state(run), rows)
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


def is_due(run: Run, metrics: Mapping[str, Any]) -> bool:
    """Return whether the state after this round is evaluated: every so many rounds, and the last."""
    number, every = metrics["round"], run.settings.recorder.evaluate_every
    return number % every == 0 or number == run.rounds or "ended" in metrics


def reasons(history: Sequence[Mapping[str, Any]]) -> dict[str, int]:
    """Return how many replies were left out for what reason, in all attempts at all rounds."""
    counts: dict[str, int] = {}
    for metrics in history:
        for failed in (metrics.get("failed", {}), *metrics.get("failed_attempts", ())):
            for why in failed.values():
                counts[why] = counts.get(why, 0) + 1
    return dict(sorted(counts.items()))


def summarise(run: Run) -> dict[str, Any]:
    """Evaluate a run on the test part, once, and return what summary.json gets."""
    settings, task = run.settings, run.worker.task
    looks = settings.recorder.test and len(task.test)
    test = evaluate(run, "test") if looks else {}
    scored = [m for m in run.history if "accuracy" in m]
    published = published_figure(run)
    return {
        "strategy": settings.strategy.target,
        "adapter": settings.adapter.label,
        "task": task.name,
        "model": settings.model.name,
        "head": settings.model.head,
        "head_form": settings.model.head_form,
        "seed": settings.seed,
        "rounds_completed": run.state.round,
        "accuracy": scored[-1]["accuracy"],
        "best_accuracy": max(m["accuracy"] for m in scored),
        "loss": scored[-1]["loss"],
        "raw_accuracy": scored[-1].get("raw_accuracy"),
        "averaging": describe(run),
        "test_accuracy": test.get("accuracy"),
        "test_loss": test.get("loss"),
        "unit": run.ledger.plan.unit,
        "epsilon_target": run.ledger.plan.epsilon,
        "epsilon_max": run.ledger.epsilon_max(),
        "accounting": run.ledger.plan.accounting,
        "epsilon_above_target": {str(k): e for k, e in run.ledger.above_target().items()},
        "epsilon_published": published["epsilon"],
        "epsilon_published_assumed": published["assumed"],
        "delta": run.ledger.plan.delta,
        "noise_source": noise_source(run.ledger.plan),
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
        "average_digest": None if run.average is None else model_state(run).digest(),
        "singular_values": spectra(model_state(run)),
        "setup_seconds": run.setup_seconds,
        "seconds": run.seconds(),
    }  # fmt: skip
