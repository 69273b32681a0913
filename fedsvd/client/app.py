"""The Flower ClientApp: one training message in, one reply out."""

import math
from dataclasses import replace
from statistics import fmean
from typing import Any

import torch
from flwr.app import ConfigRecord, Context, Error, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp
from torch import Tensor

from fedsvd.client.attack import poison
from fedsvd.client.components import fold
from fedsvd.client.evaluation import evaluate_part
from fedsvd.client.failure import failure
from fedsvd.client.faults import injected
from fedsvd.client.questions import PARTS
from fedsvd.client.rule import rule_in
from fedsvd.client.training import LocalResult, train_locally
from fedsvd.client.worker import Worker, get_worker
from fedsvd.errors import InputError
from fedsvd.factors import factors_of
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.pair import kind_of
from fedsvd.lowrank.ranks import truncate
from fedsvd.privacy.dpsgd import StepReport
from fedsvd.privacy.plan import weighting
from fedsvd.randomness import Purpose, attempt_key, torch_stream
from fedsvd.records import (
    ARRAYS,
    ATTEMPT,
    CONFIG,
    LOSS,
    METRICS,
    REPORT,
    SENDS_LOSS,
    WEIGHT,
    arrays_of,
    from_record,
    in_round,
    rank_in_round,
    to_record,
)
from fedsvd.settings import Settings

PERSONAL = "personal"  # the record of a client's state that holds what it keeps
PART = "part"  # which part of the task an evaluation is on


def make_client_app(settings: Settings) -> ClientApp:
    """Return the ClientApp of a run; its process builds the worker when the first message comes.

    A training message carries the tensors that the client cannot derive and the round's number; the
    reply carries what trained, the client's weight and the number of steps taken; a client that fails
    says why and how many steps it took. What the strategy leaves with the clients (`keeps`) is put
    into the client's state instead of the reply, and taken from there in its next round.
    Losses, gradient norms and clip fractions are computed on private data outside the mechanism;
    they are sent only with `privacy.diagnostics`, for the eyes of whoever simulates.
    An evaluation message is answered with loss and metrics of the client's own model; under privacy
    only with `privacy.diagnostics`, whatever a server asks for.
    """
    app = ClientApp(mods=[*injected(settings)])

    @app.train()
    def train(message: Message, context: Context) -> Message:
        steps: list[StepReport] = []
        try:
            return one_client(message, context, steps)
        except InputError:
            raise
        except Exception as error:  # the steps that were taken count, whatever ended them
            report = failure(error, len(steps), settings.privacy.diagnostics)
            return Message(RecordDict({REPORT: report}), reply_to=message)

    def one_client(message: Message, context: Context, steps: list[StepReport]) -> Message:
        worker = get_worker(settings)
        client = int(context.node_config["partition-id"])
        config = message.content.config_records[CONFIG]
        round = int(config["server-round"])  # type: ignore[arg-type]
        trains, keeps = in_round(config, factors_of(settings))
        worker.let_train(trains)
        received = from_record(arrays_of(message), worker.device)
        received.update(personal(context, worker.device))
        start = worker.initial.update(received)
        rule = rule_in(config)
        rank = rank_in_round(config, settings.clients.ranks, client)
        if rank is not None and rule.budget:
            rule = replace(rule, budget=rank)
        elif rank is not None and rule.folds:
            start = fold(replace(start, round=round), rule.folds, client, rank)
        elif rank is not None:
            start = truncate(start, rank)
        metrics = MetricRecord({WEIGHT: _weight(worker, client)})
        if config.get(SENDS_LOSS):
            metrics[LOSS] = _loss(worker, client, start)
        attempt = int(config.get(ATTEMPT, 0))  # type: ignore[arg-type]
        result = train_locally(worker, start, client, round, steps, rule, attempt)
        trained = {name: result.state.tensors()[name] for name in worker.model.trainable()}
        own = {name: t for name, t in trained.items() if kind_of(name) in keeps}
        sent = {name: t for name, t in trained.items() if name not in own}
        if client in settings.attack.clients:
            generator = torch_stream(
                settings.seed, Purpose.ATTACK, round, client, *attempt_key(attempt)
            )
            sent = poison(sent, start.tensors(), settings.attack, generator)
        sent.update(result.beside)
        if own:
            context.state.array_records[PERSONAL] = to_record(own)
        content = RecordDict(
            {
                ARRAYS: to_record(sent),
                METRICS: metrics,
                REPORT: ConfigRecord(_report(worker, client, result)),
            }
        )
        return Message(content, reply_to=message)

    @app.evaluate()
    def evaluate(message: Message, context: Context) -> Message:
        worker = get_worker(settings)
        if worker.plan.private and not settings.privacy.diagnostics:
            reason = "evaluation at a client is outside the guarantee: privacy.diagnostics is false"
            return Message(Error(code=1, reason=reason), reply_to=message)
        received = from_record(arrays_of(message), worker.device)
        received.update(personal(context, worker.device))
        part = str(message.content.config_records[CONFIG][PART])
        state = worker.initial.update(received)
        found = evaluate_part(worker, state, part, answers=part in PARTS)
        metrics = MetricRecord({**found, WEIGHT: float(found["examples"])})
        return Message(RecordDict({METRICS: metrics}), reply_to=message)

    return app


def personal(context: Context, device: torch.device) -> dict[str, Tensor]:
    """Return what the client has kept from its last round, by name; nothing before the first."""
    kept = context.state.array_records.get(PERSONAL)
    return from_record(kept, device) if kept is not None else {}


def _weight(worker: Worker, client: int) -> float:
    """Return the client's weight in averages: its number of examples, or 1."""
    if weighting(worker.settings) == "examples":
        return float(len(worker.parts[client]))
    return 1.0


def _loss(worker: Worker, client: int, start: AdapterState) -> float:
    """Return the mean loss of a client's examples at the state it was sent; never under privacy."""
    if worker.plan.private:
        raise PermissionError("a client's loss is outside the guarantee")
    return worker.evaluate(start, worker.parts[client])["loss"]


def _report(worker: Worker, client: int, result: LocalResult) -> dict[str, Any]:
    """Return the steps taken and, if diagnostics are on, what was seen of private data."""
    report: dict[str, Any] = {"steps": len(result.steps)}
    if not worker.settings.privacy.diagnostics:
        return report
    losses = [s.loss for s in result.steps if not math.isnan(s.loss)]
    norms = torch.cat([s.norms for s in result.steps])
    if losses:
        report["loss"] = fmean(losses)
    if len(norms):
        quantiles = torch.quantile(norms[:100_000], torch.tensor([0.1, 0.5, 0.9]))
        report["grad_norm_quantiles"] = quantiles.tolist()
        if worker.plan.per_example:
            assert worker.plan.clip_norm is not None
            report["clip_fraction"] = float((norms > worker.plan.clip_norm).float().mean())
    return report
