"""python -m benchmarks.registered: what clients cost that are registered and not asked.

A whole round of a run (draw, journal, messages, replies, ledger, aggregation, metrics, privacy.json,
checkpoint), ten clients of 10,000 over ten of ten: without training, and with one local step of
batch 2. Rounds alternate; lower quartiles. Evaluation, the same for both, is left out.
"""

import csv
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from flwr.app import Context, Message, MetricRecord, RecordDict
from flwr.clientapp import ClientApp

from benchmarks.common import machine
from fedsvd.checkpoints.writer import CheckpointWriter
from fedsvd.composing import settings_of
from fedsvd.engines.inline import InlineGrid
from fedsvd.experiment import make_grid, prepare
from fedsvd.lowrank.pair import kind_of
from fedsvd.recorders.recorder import FileRecorder
from fedsvd.records import (
    ARRAYS,
    CONFIG,
    METRICS,
    WEIGHT,
    arrays_of,
    from_record,
    in_round,
    to_record,
)
from fedsvd.rounds.attempt import one_round
from fedsvd.rounds.describe import describe_round, describe_start
from fedsvd.rounds.journal import Journal
from fedsvd.rounds.run import Run
from fedsvd.strategies.build import build_strategy

MANY, FEW = 10_000, 10


def idle_app() -> ClientApp:
    """Sends back what trains in the round as it came."""
    app = ClientApp()

    @app.train()
    def train(message: Message, context: Context) -> Message:
        trains, _ = in_round(message.content.config_records[CONFIG], ("A", "B"))
        tensors = from_record(arrays_of(message))
        sent = {n: t for n, t in tensors.items() if kind_of(n) in (*trains, "extra")}
        metrics = MetricRecord({WEIGHT: 1.0})
        return Message(RecordDict({ARRAYS: to_record(sent), METRICS: metrics}), reply_to=message)

    return app


def texts_in(folder: Path) -> Path:
    for part, number in (("train", 20_000), ("validation", 20), ("test", 20)):
        with (folder / f"{part}.csv").open("w", newline="") as file:
            writer = csv.writer(file)
            writer.writerow(["text", "label"])
            writer.writerows([f"{part} text number {i}", i % 2] for i in range(number))
    return folder


def prepared(texts: Path, clients: int) -> Run:
    began = time.perf_counter()
    settings = settings_of([
        "data=folder", f"data.path={texts}", "data.labels=['0','1']", "data.public_size=20000",
        "partition=iid", "partition.min_examples=0", f"clients.number={clients}",
        "clients.per_round=10", "model.head_init=zeros", "rounds=400",
        "training.local_steps=1", "training.batch_size=2", "privacy.accountant=rdp",
    ])  # fmt: skip
    run = prepare(settings, build_strategy(settings.strategy))
    run.rounds = settings.rounds
    print(f"{clients} clients prepared in {time.perf_counter() - began:.1f} s")
    return run


def whole_round(run: Run, folder: Path) -> Callable[[], None]:
    """Return what runs the next round as `fedsvd.experiment.train` does, but for evaluation."""
    folder.mkdir()
    run.journal = Journal(folder / "journal.jsonl")
    recorder, checkpoints = FileRecorder(folder, ""), CheckpointWriter(folder)
    recorder.start(describe_start(run))

    def one() -> None:
        metrics = one_round(run, run.state.round + 1)
        assert not metrics["failed"], metrics["failed"]
        metrics["seconds"] = run.seconds()
        run.history.append(metrics)
        recorder.round(describe_round(run))
        checkpoints.round(run)

    return one


def ratio(title: str, ones: dict[int, Callable[[], None]], repeats: int) -> None:
    wall: dict[int, list[float]] = {n: [] for n in ones}
    cpu: dict[int, list[float]] = {n: [] for n in ones}
    for number in range(repeats + 2):
        for clients, one in ones.items():
            began, used = time.perf_counter(), time.process_time()
            one()
            if number > 1:
                wall[clients].append(time.perf_counter() - began)
                cpu[clients].append(time.process_time() - used)
    for kind, found in (("clock", wall), ("processor", cpu)):
        many, few = (statistics.quantiles(found[n], n=4)[0] for n in (MANY, FEW))
        print(f"{title}, {kind}: {1e3 * many:.1f} ms / {1e3 * few:.1f} ms = {many / few:.3f}")


def idle_rounds(folder: Path) -> list[Callable[[], None]]:
    """Return what runs a whole round without training, for many and for few clients."""
    (folder / "texts").mkdir()
    texts, ones = texts_in(folder / "texts"), []
    for clients in (MANY, FEW):
        run = prepared(texts, clients)
        run.grid = InlineGrid(idle_app(), clients)
        ones.append(whole_round(run, folder / str(clients)))
    return ones


def main() -> None:
    print(machine())
    with tempfile.TemporaryDirectory() as place:
        folder = Path(place)
        (folder / "texts").mkdir()
        texts = texts_in(folder / "texts")
        runs = {clients: prepared(texts, clients) for clients in (MANY, FEW)}
        ones = {clients: whole_round(run, folder / str(clients)) for clients, run in runs.items()}
        for clients, run in runs.items():
            run.grid = InlineGrid(idle_app(), clients)
        ratio("without training", ones, 21)
        for run in runs.values():
            run.grid = make_grid(run.settings, run.worker)
        ratio("with one local step", ones, 11)


if __name__ == "__main__":
    main()
