"""A round: ask the clients that were drawn, sort out their replies, account, aggregate."""

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, RecordDict
from torch import Tensor

from fedsvd import records
from fedsvd.client.faults import on_the_way
from fedsvd.client.rule import rule_in
from fedsvd.errors import ClientsFailed, TooFewReplies
from fedsvd.factors import factors_of
from fedsvd.lowrank.pair import kind_of
from fedsvd.lowrank.ranks import truncate
from fedsvd.rounds.again import entered
from fedsvd.rounds.journal import Entry
from fedsvd.rounds.noise import noise_in, noted
from fedsvd.rounds.noised import noised
from fedsvd.rounds.participation import all_spent, draw
from fedsvd.rounds.released import noise_share, row_spaces
from fedsvd.rounds.replies import Received, receive
from fedsvd.rounds.run import Run
from fedsvd.strategies.base import Strategy
from fedsvd.strategies.stock import stock_of


def one_round(run: Run, number: int) -> dict[str, Any]:
    """Run a round and return its metrics; repeated while too few clients reply, if so set.

    Raises TooFewReplies when that is not set, or has been done `faults.repeats` times, and
    ClientsFailed where the software of all clients failed for one reason: it would again.
    """
    faults, earlier = run.settings.faults, []
    while True:
        metrics = _attempt(run, number)
        again = metrics.pop("again", None)
        if again is None:
            break
        earlier.append(metrics["failed"])
        run.attempt += 1
        if again == "broken":
            raise ClientsFailed(_broken(run, number, metrics))
        if again == "few" and (faults.below == "stop" or len(earlier) > faults.repeats):
            told = "; ".join(f"client {k}: {why}" for k, why in metrics["failed"].items())
            raise TooFewReplies(
                f"round {number}: {len(metrics['clients']) - len(metrics['failed'])} valid replies "
                f"of {len(metrics['clients'])}, faults.min_replies={faults.min_replies} ({told})"
            )
    if earlier:
        metrics["failed_attempts"] = earlier
    run.attempt = 0
    return metrics


def _attempt(run: Run, number: int) -> dict[str, Any]:
    """Draw the clients, let them train, account, aggregate; return the metrics of the attempt.

    They hold "again" if it came to nothing: the state is as it was, what was spent is spent.
    """
    began = time.perf_counter()
    entry = None
    while entry is None:  # until the draw stands beside what the journal says was done before
        drawn, sat_out = draw(run, number)
        metrics: dict[str, Any] = {"round": number, "clients": drawn, "sat_out": sat_out}
        # Where a trusted server hides who takes part, a round of nobody is a release like any other.
        hidden = run.worker.plan.hides_clients
        if not drawn and (not hidden or all_spent(run)):
            run.state = replace(run.state, round=number)
            return metrics
        entry = entered(run, number, drawn)

    config = _orders(run)
    messages = _messages(run, number, drawn, config)
    asked = sorted(m.metadata.dst_node_id for m in messages)
    wanted = _asked_for(run, config)
    kept = {k: RecordDict(dict(state.items())) for k, state in run.grid.states().items()}
    got = _ask(run, messages, partial(_of_rank, run, wanted, config), entry)
    _account(run, entry, messages, asked, got, metrics)
    # Another outcome than the journal's must not be released with the same noise.
    changed = run.client_level is not None and entry.failed != metrics["failed"]
    few = len(got.good) < min(run.settings.faults.min_replies, len(asked))
    broken = entry.cause
    vain = bool(broken or few or changed)
    run.grid.restore({k: kept.get(k, RecordDict()) for k in (asked if vain else got.failed)})
    if vain:
        why = "broken" if broken else "few" if few else "changed"
        return {**metrics, "again": why, "cause": broken}
    metrics.update(_train_metrics(run, {k: got.reports[k] for k in asked if k in got.reports}))
    _aggregate(run, number, got, wanted, metrics)
    metrics["train_seconds"] = time.perf_counter() - began
    return metrics


def _broken(run: Run, number: int, metrics: Mapping[str, Any]) -> str:
    """Return what to say of a round in which every client's software failed for one reason."""
    asked, said = len(metrics["failed"]), next(iter(metrics["failed"].values()))
    cause = metrics["cause"]
    told = f"{said.removeprefix('failed: ')} (at {cause.partition(' at ')[2]})"
    if not run.settings.privacy.diagnostics:
        told = f"{cause} (privacy.diagnostics=true, outside the guarantee, has clients say more)"
    who = "the one client" if asked == 1 else f"all {asked} clients"
    return f"round {number}: {who} failed for the same reason: {told}"


def _orders(run: Run) -> ConfigRecord:
    """Return what clients are told beside what the strategy adds."""
    attempt = {records.ATTEMPT: run.attempt} if run.attempt else {}
    config = ConfigRecord({**run.orders, **attempt})
    if records.LOSS in (_metrics(run) or ()):
        config[records.SENDS_LOSS] = True
    return config


def _metrics(run: Run) -> tuple[str, ...] | None:
    """Return what a strategy of Flower's looks for beside arrays; None where ours does not mind."""
    stock = stock_of(type(run.strategy))
    if stock is None:
        return None
    return (records.WEIGHT, records.LOSS) if stock.losses else (records.WEIGHT,)


def _messages(run: Run, number: int, drawn: list[int], config: ConfigRecord) -> list[Message]:
    """Return what the strategy sends the clients that were drawn; it may add to `config`."""
    run.grid.invite(drawn)
    if not drawn and not isinstance(run.strategy, Strategy):
        return []
    arrays = _global_arrays(run)
    return list(run.strategy.configure_train(number, arrays, config, run.grid))


def _ask(
    run: Run,
    messages: Sequence[Message],
    wanted: Callable[[int], Mapping[str, Tensor]],
    entry: Entry,
) -> Received:
    """Send the messages and sort out the replies; enter what came of it into the journal.

    Where the journal knows it already, whoever was left out then is left out again, unasked.
    """
    settings = run.settings
    known = entry.failed or {}
    sent = [m for m in messages if str(m.metadata.dst_node_id) not in known]
    replies = list(run.grid.send_and_receive(sent))
    replies = on_the_way(settings, replies, entry.round, entry.attempt)
    got = receive(sent, replies, wanted, settings.training.local_steps, _metrics(run))
    got.failed.update({int(k): why for k, why in known.items()})
    taken = entry.taken or {}
    got.steps.update({int(k): taken[k] for k in known if k in taken})
    if entry.failed is None:
        entry.cause = got.one_cause([m.metadata.dst_node_id for m in messages])
        run.journal.replied(entry, dict(sorted(got.failed.items())), got.steps)
    return got


def _account(
    run: Run, entry: Entry, messages: Sequence[Message], asked: Sequence[int], got: Received,
    metrics: dict[str, Any],
) -> None:  # fmt: skip
    """Enter the steps that were taken into the ledger, and what travelled into the metrics."""
    run.ledger.record_round(entry.round, asked, got.steps)
    run.journal.settle([entry])
    for client in asked:
        run.rounds_taken[client] += 1
    down = sum(records.record_bytes(records.arrays_of(m)) for m in messages)
    up = sum(records.record_bytes(records.arrays_of(r)) for r in got.good)
    run.bytes_up, run.bytes_down = run.bytes_up + up, run.bytes_down + down
    failed = {str(k): why for k, why in sorted(got.failed.items())}
    metrics.update({"failed": failed, "bytes_up": up, "bytes_down": down})
    if got.ignored:
        metrics["ignored"] = {str(k): why for k, why in got.ignored.items()}


def _aggregate(
    run: Run, number: int, got: Received, wanted: Mapping[str, Tensor], metrics: dict[str, Any]
) -> None:
    """Let the strategy make the next state of the valid replies, noised first if that is the unit."""
    good, mechanism = got.good, run.client_level
    if mechanism is not None:
        good = [noised(run, good, wanted, number, metrics)]
    if isinstance(run.strategy, Strategy):
        view = run.strategy.noise = noise_in(run, number, good, mechanism)
        if view is not None:
            metrics.update(noise_share(run, wanted, good, view.variance))
    result = run.strategy.aggregate_train(number, good)[0] if good else None
    if good and result is None:  # as a stock strategy may, given fewer than its rule takes
        metrics["not_aggregated"] = len(good)
    before = run.state
    state = before if result is None else before.update(_tensors(run, result))
    if result is not None and run.client_level is None:
        run.ledger.record_mean(number, [r.metadata.src_node_id for r in good])
    run.state = replace(state, round=number)
    if result is not None:
        metrics.update(row_spaces(run, before))
        noted(run, number, metrics)


def _asked_for(run: Run, config: ConfigRecord) -> dict[str, Tensor]:
    """Return the tensors that a client must send back, with the values it started from."""
    trains, keeps = records.in_round(config, factors_of(run.settings))
    trained = run.state.select(records.travelling(trains, keeps))
    asked = run.strategy.asks(trained) if isinstance(run.strategy, Strategy) else {}
    return {**trained, **asked}


def _of_rank(
    run: Run, wanted: dict[str, Tensor], config: ConfigRecord, client: int
) -> dict[str, Tensor]:
    """Return `wanted` in the shapes of a client's own rank."""
    rank = records.rank_in_round(config, run.settings.clients.ranks, client)
    if rank is None or rule_in(config).budget:  # components are chosen, and all are sent
        return wanted
    shapes = truncate(run.state, rank).tensors()
    return {name: shapes.get(name, t) for name, t in wanted.items()}


def _global_arrays(run: Run) -> ArrayRecord:
    """Return what the strategy is given: all of the state, or for a stock one what trains of it."""
    tensors = run.state.tensors()
    if not isinstance(run.strategy, Strategy):
        tensors = {n: t for n, t in tensors.items() if n in run.worker.model.trainable()}
    return records.to_record(tensors)


def _tensors(run: Run, arrays: ArrayRecord) -> dict[str, Any]:
    """Return aggregated arrays as tensors in the dtypes and on the device of the state.

    A strategy may add tensors that the state did not have (see `AdapterState.update`), and what it
    remembers may change its shape.
    """
    like = {n: t for n, t in run.state.tensors().items() if kind_of(n) != "memory"}
    found = records.from_record(arrays, run.worker.device)
    return {
        n: t.to(like[n].dtype).reshape(like[n].shape) if n in like else t for n, t in found.items()
    }


def _train_metrics(run: Run, reports: Mapping[int, dict[str, Any]]) -> dict[str, Any]:
    """Return means over clients of what they reported, and what the clients have spent."""
    losses = [r["loss"] for r in reports.values() if "loss" in r]
    spent = run.ledger.epsilons()
    known = [epsilon for epsilon in spent if epsilon is not None]
    return {
        "train_loss": float(np.mean(losses)) if losses else None,
        "reports": {str(k): report for k, report in reports.items()},
        "epsilon": {str(client): epsilon for client, epsilon in enumerate(spent)},
        "epsilon_max": max(known, default=None),
    }
