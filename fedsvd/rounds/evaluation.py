"""What a state is worth, and what a whole run comes to."""

import time
from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from flwr.app import ConfigRecord, Message, MessageType, RecordDict

from fedsvd import records
from fedsvd.client.app import PART
from fedsvd.client.evaluation import ANSWERED, evaluate_part
from fedsvd.client.questions import PARTS
from fedsvd.factors import factors_of
from fedsvd.lowrank import spectra
from fedsvd.objectives.metric import Metric
from fedsvd.privacy.plan import noise_source
from fedsvd.rounds.averaging import describe, model_state
from fedsvd.rounds.published import published_figure
from fedsvd.rounds.record import AVERAGE, GLOBAL, PERSONAL, SHARED
from fedsvd.rounds.run import Run
from fedsvd.strategies.base import Strategy
from fedsvd.version import versions

CONFUSION = "confusion"
DETAILS = ("macro_f1", "mcc", CONFUSION)  # see Classification.details


def evaluated(run: Run, last: bool) -> dict[str, Any]:
    """Return loss and metrics on the validation part: after the last round all of it.

    Before it they are on the subset that `recorder.evaluate_examples` asks for; `examples` says how
    many rows that are. Where models are averaged they are the average's; those that begin
    with `raw_` are the last one's. After the last round `DETAILS` are there, where the objective has
    them. `evaluate_seconds` is what it took.
    """
    began = time.perf_counter()
    part = "validation" if last else "subset"
    more: dict[str, Any] | None = {} if last else None
    found = evaluate(run, part, details=more)
    if run.average is not None:
        raw = evaluate_part(run.worker, run.state, part)
        found.update({f"raw_{key}": raw[key] for key in raw if not key.endswith("examples")})
    return {**found, **(more or {}), "evaluate_seconds": time.perf_counter() - began}


def kept(run: Run) -> bool:
    """Return whether clients keep a part of what they train, so that each has a model of its own."""
    kinds = {*factors_of(run.settings), "extra"}
    return isinstance(run.strategy, Strategy) and bool(set(run.strategy.keeps) & kinds)


def personal(run: Run) -> bool:
    """Return whether clients' own models are evaluated: they have some, and are let say so."""
    return kept(run) and not (run.worker.plan.private and not run.settings.privacy.diagnostics)


def which(run: Run) -> tuple[str, str]:
    """Return which model the figures of a summary are of, and which one is exported."""
    held = SHARED if kept(run) else AVERAGE if run.average else GLOBAL
    return PERSONAL if personal(run) else held, held


def evaluate(
    run: Run, part: str, owners: dict[str, dict[str, float]] | None = None,
    details: dict[str, Any] | None = None,
) -> dict[str, float]:  # fmt: skip
    """Return loss and metrics on a part of the task: see `fedsvd.client.evaluation.evaluate_part`.

    They are the global model's, averaged if so set, or, where clients keep factors of their own, the
    mean of all clients' models. What those tell of private data is outside any guarantee, as
    diagnostics are. `owners` gets the global model's figures on each client's rows of the part,
    `details` what the objective tells of it beyond figures.
    """
    worker = run.worker
    if not personal(run):
        state = model_state(run)
        return evaluate_part(worker, state, part, owners, details, answers=part in PARTS)
    run.grid.invite(range(run.settings.clients.number))
    content = RecordDict(
        {
            records.ARRAYS: records.to_record(run.state.tensors()),
            records.CONFIG: ConfigRecord({**run.orders, PART: part}),
        }
    )
    replies = run.grid.send_and_receive(
        [Message(content, node, MessageType.EVALUATE) for node in run.grid.get_node_ids()]
    )
    found = [records.metrics_of(r) for r in replies if not r.has_error()]
    first, *more = worker.objective.metrics
    figures = [first.name, "loss", *(metric.name for metric in more)]
    told = [*figures, "examples", *(f"subset_{key}" for key in (*figures, "examples"))]
    told += [ANSWERED, *(metric.name for metric in worker.objective.generated)]
    means = {  # nothing else is taken of a client's reply
        key: fmean(float(m[key]) for m in found) if found else float("nan")  # type: ignore[arg-type]
        for key in told
        if key in figures or (found and all(key in m for m in found))
    }
    whole = ("examples", ANSWERED)
    return {key: int(x) if key.endswith(whole) else x for key, x in means.items()}


def _exported(run: Run, test: bool) -> dict[str, float]:
    """Return the exported model's figures where it is not what the run evaluates."""
    if not personal(run):
        return {}
    found = {}
    for part in ("validation", *(["test"] if test else [])):
        name = "exported" if part == "validation" else "exported_test"
        figures = evaluate_part(run.worker, model_state(run), part)
        found.update({f"{name}_{m.name}": figures[m.name] for m in run.worker.objective.metrics})
    return found


def _confusion(run: Run, test: dict[str, Any], validation: dict[str, Any]) -> dict[str, Any]:
    """Return the matrix of confusion, of the test part if that is looked at, with its labels."""
    part, held = ("test", test) if CONFUSION in test else ("validation", validation)
    if CONFUSION not in held:
        return {}
    labels = list(run.worker.task.label_names)
    return {CONFUSION: {"part": part, "labels": labels, "counts": held[CONFUSION]}}


def is_last(run: Run, metrics: Mapping[str, Any]) -> bool:
    """Return whether no round comes after this one."""
    return metrics["round"] == run.rounds or "ended" in metrics


def is_due(run: Run, metrics: Mapping[str, Any]) -> bool:
    """Return whether the state after this round is evaluated: every so many rounds, and the last."""
    return metrics["round"] % run.settings.recorder.evaluate_every == 0 or is_last(run, metrics)


def figure(metric: Metric, metrics: Mapping[str, Any]) -> float | None:
    """Return the figure by which rounds are compared, None where a round was not evaluated.

    It is on the same rows in all rounds: on the subset, also after the last round.
    """
    return metrics.get(f"subset_{metric.name}", metrics.get(metric.name))


def score(metric: Metric, metrics: Mapping[str, Any]) -> float | None:
    """Return that figure with the sign that makes more of it better."""
    found = figure(metric, metrics)
    return None if found is None else metric.score(found)


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
    began = time.perf_counter()
    owners: dict[str, dict[str, float]] = {}
    seen: dict[str, Any] = {}
    test = evaluate(run, "test", owners, seen) if looks else {}
    exported = _exported(run, bool(looks))
    evaluating = time.perf_counter() - began
    output = run.worker.objective.output(settings)
    metric, more = run.worker.objective.metric, run.worker.objective.metrics[1:]
    generated = (*(m.name for m in run.worker.objective.generated), ANSWERED)
    scored = [m for m in run.history if metric.name in m]
    detailed = {k: v for k, v in scored[-1].items() if k in DETAILS}
    last, best = scored[-1], max(scored, key=lambda m: score(metric, m) or 0.0)
    published, final = published_figure(run), model_state(run)
    return {
        "command": run.command,
        "versions": versions(),
        "strategy": settings.strategy.target,
        "adapter": settings.adapter.label,
        "task": task.name,
        "data_source": task.source,
        "model": settings.model.name,
        "head": output.name,
        "head_form": output.form,
        "seed": settings.seed,
        "rounds_completed": run.state.round,
        metric.name: last[metric.name],
        "loss": last["loss"],
        **{m.name: last[m.name] for m in more},
        "examples": last.get("examples"),
        f"best_{metric.name}": figure(metric, best),
        "best_round": best["round"],
        "best_examples": best.get("subset_examples", best.get("examples")),
        f"raw_{metric.name}": last.get(f"raw_{metric.name}"),
        "averaging": describe(run),
        "start": settings.start.describe(),
        **({"start_losses": list(run.started)} if run.started else {}),
        f"test_{metric.name}": test.get(metric.name),
        "test_loss": test.get("loss"),
        **{f"test_{m.name}": test.get(m.name) for m in more},
        "test_examples": test.get("examples"),
        **{k: last[k] for k in generated if k in last},
        **{f"test_{k}": test[k] for k in generated if k in test},
        **({"test_by_client": owners} if owners else {}),
        **{k: v for k, v in detailed.items() if k != CONFUSION},
        **{f"test_{k}": v for k, v in seen.items() if k != CONFUSION},
        **_confusion(run, seen, detailed),
        "evaluated": which(run)[0],
        "exported": which(run)[1],
        **exported,
        "unit": run.ledger.plan.unit,
        "epsilon_target": run.ledger.plan.epsilon,
        "epsilon_max": run.ledger.epsilon_max(),
        "threat_model": run.ledger.plan.threat_model,
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
        "microbatch_tokens": settings.training.budget,
        "device": str(run.worker.device),
        "attack": settings.attack.name,
        "state_digest": run.state.digest(),
        "average_digest": None if run.average is None else final.digest(),
        "singular_values": spectra(final),
        "setup_seconds": run.setup_seconds,
        "seconds": run.seconds(),
        "seconds_training": sum(m.get("train_seconds", 0.0) for m in run.history),
        "seconds_evaluating": sum(m.get("evaluate_seconds", 0.0) for m in run.history) + evaluating,
    }  # fmt: skip
