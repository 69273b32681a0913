"""A run as a reader would tell it: build the parts, loop over rounds, finish."""

import hashlib
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any

import numpy as np
from flwr.app import ArrayRecord, ConfigRecord, Message, MessageType, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import Tensor

from fedsvd import interrupt, records
from fedsvd.client.app import make_client_app
from fedsvd.client.faults import on_the_way
from fedsvd.client.public import WorkerView
from fedsvd.client.worker import Worker, get_worker
from fedsvd.engines.base import SERVER_NODE, Engine
from fedsvd.engines.inline import InlineGrid
from fedsvd.errors import TooFewReplies, wrong
from fedsvd.evaluation import evaluate_round, finish
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.ranks import truncate
from fedsvd.participation import participants
from fedsvd.privacy.client_level import ClientMechanism, make_mechanism, release
from fedsvd.privacy.ledger import Ledger
from fedsvd.randomness import Purpose, attempt_key, torch_stream
from fedsvd.replies import Received, receive
from fedsvd.results.journal import Entry, Journal
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
    rounds: int = 0  # the round that it ends after; settings.rounds is what the plan was made for
    attempt: int = 0  # at the coming round
    journal: Journal = field(default_factory=Journal)
    strategy_start: Mapping[str, Any] = field(default_factory=dict)
    began: float = field(default_factory=time.perf_counter)
    seconds_before: float = 0.0

    def seconds(self) -> float:
        """Return the seconds that rounds have taken, also before the run was resumed."""
        return self.seconds_before + time.perf_counter() - self.began


def prepare(settings: Settings, strategy: FlowerStrategy, grid: Engine | None = None) -> Run:
    """Build data, plan, model, ledger and, if none is given, grid; what can be refused is here."""
    worker = get_worker(settings)
    grid = grid or make_grid(settings, worker)
    if isinstance(strategy, Strategy):
        strategy.device, strategy.public = worker.device, WorkerView(worker)
    run = Run(settings, worker, strategy, grid, Ledger(worker.plan), worker.initial)
    run.rounds_taken, run.rounds = [0] * settings.clients.number, settings.rounds
    run.strategy_start = dict(vars(strategy))
    if worker.plan.unit == "client":
        run.client_level = make_mechanism(settings, worker.plan.clients[0].noise_multiplier)
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

    told = worker_settings(settings, factors_of(settings), worker.plan.gradients)
    costs = [c.sample_rate * c.examples for c in worker.plan.clients]
    make, deadline = partial(make_client_app, told), settings.faults.deadline
    return RayGrid(make, settings.clients.number, settings.engine, costs, deadline)


def train(run: Run, recorder: Recorder) -> dict[str, Any]:
    """Run all rounds, or until no client may take part any more, and return the summary.

    A run that was restored goes on after its last round. Raises Interrupted after the round in which
    a signal came, and RunError if it cannot go on; what is needed to resume is on the disk then.
    """
    run.began = time.perf_counter()
    recorder.start(run)
    interrupt.training(True)
    try:
        if not run.history:
            evaluate_round(run, recorder, {"round": 0, "clients": []})
        while run.state.round < run.rounds and "ended" not in run.history[-1]:
            _stop_if_asked(run, recorder)
            metrics = one_round(run, run.state.round + 1)
            if all_spent(run) and run.state.round < run.rounds:
                metrics["ended"] = "no client may take part in another round"
            evaluate_round(run, recorder, metrics)
        _stop_if_asked(run, recorder)
    except TooFewReplies:
        recorder.halt(run)
        raise
    finally:
        interrupt.training(False)
    _charge(run, list(run.journal.open.values()))
    return finish(run, recorder)


def _stop_if_asked(run: Run, recorder: Recorder) -> None:
    signum = interrupt.requested()
    if signum is not None:
        recorder.halt(run)
        raise interrupt.Interrupted(signum, f"stopped after round {run.state.round}")


def may_take_part(run: Run, client: int) -> bool:
    """Return whether the client is below the bound on its rounds and within its budget."""
    below = run.rounds_taken[client] < run.worker.plan.rounds_bound
    return below and not run.ledger.would_exceed(client)


def all_spent(run: Run) -> bool:
    """Return whether no client may take part in another round."""
    return not any(may_take_part(run, k) for k in range(run.settings.clients.number))


def one_round(run: Run, number: int) -> dict[str, Any]:
    """Run a round and return its metrics; repeated while too few clients reply, if so set.

    Raises TooFewReplies when that is not set, or has been done `faults.repeats` times.
    """
    faults, earlier = run.settings.faults, []
    while True:
        metrics = _attempt(run, number)
        again = metrics.pop("again", None)
        if again is None:
            break
        earlier.append(metrics["failed"])
        run.attempt += 1
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
    settings, plan, began = run.settings, run.worker.plan, time.perf_counter()
    entry = None
    while entry is None:  # until the draw stands beside what the journal says was done before
        drawn, sat_out = _draw(run, number)
        metrics: dict[str, Any] = {"round": number, "clients": drawn, "sat_out": sat_out}
        # Where a trusted server hides who takes part, a round of nobody is a release like any other.
        hidden = plan.threat_model == "trusted_server"
        if not drawn and not hidden:
            run.state = replace(run.state, round=number)
            return metrics
        entry = _entered(run, number, drawn)

    run.grid.invite(drawn)
    messages: list[Message] = []
    config = ConfigRecord({records.ATTEMPT: run.attempt} if run.attempt else {})
    if drawn or isinstance(run.strategy, Strategy):
        arrays = _global_arrays(run)
        messages = list(run.strategy.configure_train(number, arrays, config, run.grid))
    asked = sorted(m.metadata.dst_node_id for m in messages)
    down = sum(records.record_bytes(records.arrays_of(m)) for m in messages)
    wanted = _asked_for(run, config)
    kept = {k: RecordDict(dict(state.items())) for k, state in run.grid.states().items()}
    got = _ask(run, messages, partial(_of_rank, run, wanted, config), entry)
    run.ledger.record_round(number, asked, got.steps)
    run.journal.settle([entry])
    for client in asked:
        run.rounds_taken[client] += 1
    up = sum(records.record_bytes(records.arrays_of(r)) for r in got.good)
    run.bytes_up, run.bytes_down = run.bytes_up + up, run.bytes_down + down
    failed = {str(k): why for k, why in sorted(got.failed.items())}
    metrics.update({"failed": failed, "bytes_up": up, "bytes_down": down})
    if got.ignored:
        metrics["ignored"] = {str(k): why for k, why in got.ignored.items()}
    # Another outcome than the journal's must not be released with the same noise.
    changed = run.client_level is not None and entry.failed != failed
    few = len(got.good) < min(settings.faults.min_replies, len(asked))
    left_out = asked if few or changed else got.failed
    run.grid.restore({k: kept.get(k, RecordDict()) for k in left_out})
    if few or changed:
        return {**metrics, "again": "few" if few else "changed"}
    metrics.update(_train_metrics(run, {k: got.reports[k] for k in asked if k in got.reports}))
    good = got.good
    if run.client_level is not None:
        good = [_noised(run, good, wanted, number, metrics)]
    result = run.strategy.aggregate_train(number, good)[0] if good else None
    if good and result is None:  # as a stock strategy may, given fewer than its rule takes
        metrics["not_aggregated"] = len(good)
    state = run.state if result is None else run.state.update(_tensors(run, result))
    run.state = replace(state, round=number)
    metrics["train_seconds"] = time.perf_counter() - began
    return metrics


def _draw(run: Run, number: int) -> tuple[list[int], list[int]]:
    """Return who takes part in a round, and who was drawn and may not."""
    clients, bound = run.settings.clients, run.worker.plan.rounds_bound
    draw = participants(clients, bound, run.settings.seed, number, run.rounds_taken)
    run.ledger.reserved = run.journal.reserved(number)
    spent = [k for k in draw.clients if run.ledger.would_exceed(k)]
    run.ledger.reserved = {}
    return [k for k in draw.clients if k not in spent], sorted({*draw.at_bound, *spent})


def _entered(run: Run, number: int, drawn: list[int]) -> Entry | None:
    """Enter an attempt into the journal, or find it there from before the run was interrupted.

    What is found is done again with the same streams, if it starts from the same bits: the same
    release once more tells nothing new. Anything else that was done counts as spent, the next attempt
    draws from other streams, and None asks for another draw.
    """
    position = _position(run)
    before = run.journal.of_round(number)
    same = [
        e for e in before if (e.attempt, e.position, e.clients) == (run.attempt, position, drawn)
    ]
    if same and not run.worker.plan.secure_noise:
        return same[0]
    if before:
        run.attempt = max(run.attempt, *(e.attempt + 1 for e in before))
        _charge(run, before)
        return None
    entry = Entry(number, run.attempt, position, drawn, run.worker.plan.steps_per_round)
    run.journal.asked(entry)
    return entry


def _position(run: Run) -> str:
    """Return a digest of all that a round's releases depend on, beside settings and streams."""
    sha = hashlib.sha256(run.state.digest().encode())
    for client, state in run.grid.states().items():
        for name, record in sorted(state.array_records.items()):
            for key, array in record.items():
                sha.update(f"|{client}|{name}|{key}|".encode() + array.data)
    sha.update(repr((run.rounds_taken, run.client_level)).encode())
    return sha.hexdigest()


def _charge(run: Run, entries: Sequence[Entry]) -> None:
    """Enter into the ledger what was done before the run was interrupted and is not done again."""
    for entry in entries:
        taken = {int(k): n for k, n in (entry.taken or {}).items()}
        run.ledger.record_round(entry.round, entry.clients, taken)
        for client in entry.clients:
            run.rounds_taken[client] += 1
    run.journal.settle(entries)


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
    got = receive(sent, replies, wanted, settings.training.local_steps)
    got.failed.update({int(k): why for k, why in known.items()})
    taken = entry.taken or {}
    got.steps.update({int(k): taken[k] for k in known if k in taken})
    if entry.failed is None:
        run.journal.replied(entry, dict(sorted(got.failed.items())), got.steps)
    return got


def _asked_for(run: Run, config: ConfigRecord) -> dict[str, Tensor]:
    """Return the tensors that a client must send back, with the values it started from."""
    trains, keeps = records.in_round(config, factors_of(run.settings))
    return run.state.select((*(kind for kind in trains if kind not in keeps), "extra"))


def _of_rank(
    run: Run, wanted: dict[str, Tensor], config: ConfigRecord, client: int
) -> dict[str, Tensor]:
    """Return `wanted` in the shapes of a client's own rank."""
    rank = records.rank_in_round(config, run.settings.clients.ranks, client)
    if rank is None:
        return wanted
    shapes = truncate(run.state, rank).tensors()
    return {name: shapes[name] for name in wanted}


def _noised(
    run: Run, good: Sequence[Message], wanted: Mapping[str, Tensor], number: int,
    metrics: dict[str, Any],
) -> Message:  # fmt: skip
    """Return one reply that holds the noised mean of the clients', and note the clip used."""
    settings, device = run.settings, run.worker.device
    assert run.client_level is not None
    generator = None
    if not run.worker.plan.secure_noise:
        keys: tuple[int | str, ...] = (number, "server", *attempt_key(run.attempt))
        generator = torch_stream(settings.seed, Purpose.NOISE, *keys, device=device)
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
