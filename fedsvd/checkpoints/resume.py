"""Saving a run after a round, finding what was saved, and going on from it."""

import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from fedsvd import records
from fedsvd.checkpoints.checkpoint import Checkpoint, read_whole, write_checkpoint
from fedsvd.checkpoints.identity import flat, refuse_changes, surroundings
from fedsvd.checkpoints.kept import pack_clients, pack_strategy, unpack_clients, unpack_strategy
from fedsvd.errors import InputError, wrong
from fedsvd.lowrank import AdapterState
from fedsvd.rounds.averaging import packed, unpacked
from fedsvd.rounds.journal import NAME, Journal
from fedsvd.rounds.participation import all_spent
from fedsvd.rounds.run import Run
from fedsvd.settings import Settings
from fedsvd.settings.clients import AUTO
from fedsvd.strategies.base import Strategy
from fedsvd.terminal import complain

METRICS = "metrics.jsonl"
PATTERN = re.compile(r"round-(\d{6,})\.safetensors")


@dataclass(frozen=True)
class Saved:
    """A checkpoint that was found: its file, its content, and complaints about newer ones."""

    path: Path
    content: Checkpoint
    complaints: tuple[str, ...]

    @property
    def facts(self) -> Mapping[str, Any]:
        """The JSON values of the checkpoint."""
        return self.content.facts


def round_file(folder: Path, round: int) -> Path:
    """Return the checkpoint file of a round."""
    return folder / f"round-{round:06d}.safetensors"


def round_files(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder, the newest first."""
    found = [p for p in folder.iterdir() if PATTERN.fullmatch(p.name)] if folder.is_dir() else []
    return sorted(found, key=lambda p: int(p.stem.split("-")[1]), reverse=True)


def find(folder: Path) -> Saved | None:
    """Return the newest checkpoint of a run folder that is whole, or None if there is none at all.

    Raises InputError that names the files if all of them are damaged.
    """
    complaints: list[str] = []
    for path in round_files(folder / "checkpoints"):
        try:
            return Saved(path, read_whole(path), tuple(complaints))
        except InputError as error:
            complaints.append(str(error))
    if complaints:
        raise InputError("; ".join(complaints))
    return None


def save(run: Run, path: Path, more: Mapping[str, Any]) -> None:
    """Write the checkpoint of where a run stands; `more` are the recorder's own facts."""
    clients, told_clients = pack_clients(run.grid.states())
    strategy, told_strategy = pack_strategy(run.strategy, run.strategy_start)
    average, told_average = packed(run.average)
    facts = {
        "round": run.state.round,
        "attempt": run.attempt,
        "journal": run.journal.lines,
        "open": [asdict(e) for e in run.journal.open.values()],
        "rounds": run.rounds,
        "planned_rounds": run.settings.rounds,
        "rounds_taken": run.rounds_taken,
        "bytes_up": run.bytes_up,
        "bytes_down": run.bytes_down,
        "seconds": run.seconds(),
        "clip_norm": None if run.client_level is None else run.client_level.clip_norm,
        "noise": run.noise,
        "average": told_average,
        "events": run.ledger.events_as_dict(),
        "clients": told_clients,
        "strategy": told_strategy,
        "config": flat(run.settings),
        "surroundings": surroundings(run.worker),
        **more,
    }
    write_checkpoint(path, run.state, {**clients, **strategy, **average}, facts)


def plan_rounds(settings: Settings, saved: Saved) -> tuple[Settings, int]:
    """Return the settings to build the run with, and the round it ends after.

    The configuration must be what it was, but for what cannot change the past. Another number of
    rounds leaves a private run's plan (its noise and bounds) as it was; the further rounds must fit
    what is left of it. Raises InputError that names the keys.
    """
    try:
        facts = saved.facts
        planned, until, done = (int(facts[k]) for k in ("planned_rounds", "rounds", "round"))
        then = dict(facts["config"])
        if settings.training.microbatch_tokens == AUTO:  # the run's own choice goes on
            settings = settings.with_budget(int(then["training.microbatch_tokens"]))
        refuse_changes(str(saved.path), then, flat(settings))
    except (KeyError, TypeError, ValueError) as error:
        raise InputError(f"{saved.path}: is damaged: lacks {error}") from error
    asked = settings.rounds
    if asked < done:
        raise wrong("rounds", asked, f"at least {done}: that many are done")
    if asked in (planned, until):
        return replace(settings, rounds=planned), asked
    if settings.training.schedule == "linear":
        raise InputError(
            f"rounds: {asked} is not allowed, it was {planned}: under training.schedule=linear the "
            "rate of every past round depends on it"
        )
    averaging = settings.averaging
    if averaging.active and (averaging.start, averaging.end) != (0, 1):
        raise InputError(
            f"rounds: {asked} is not allowed, it was {planned}: which rounds are averaged follows "
            "from it, as averaging.start and averaging.end are parts of it"
        )
    if settings.privacy.unit == "none":
        return settings, asked
    return replace(settings, rounds=planned), asked


def open_run(folder: Path, settings: Settings, resume: bool) -> tuple[Settings, int, Saved | None]:
    """Return the settings to build a run with, the round it ends after, and what it goes on from."""
    saved = find(folder) if resume else None
    if saved is None:
        return settings, settings.rounds, None
    for complaint in saved.complaints:
        complain(f"warning: {complaint}; {saved.path.name} is used")
    return *plan_rounds(settings, saved), saved


def finished(folder: Path, until: int) -> dict[str, Any] | None:
    """Return the summary of a run that has nothing left to do, or None."""
    try:
        summary = json.loads((folder / "summary.json").read_text(encoding="utf-8"))
        ended = summary["ended"] is not None or summary["rounds_completed"] >= until
        return dict(summary) if ended else None
    except (OSError, ValueError, KeyError, TypeError):
        return None  # no summary, or one that is written anew


def begin(run: Run, folder: Path) -> Mapping[str, Any] | None:
    """Open a run's journal and put the run where its newest checkpoint stands, if there is one.

    Returns the facts of that checkpoint. Raises InputError if another process runs in the folder.
    """
    run.journal = Journal(folder / NAME)
    run.journal.lock()
    try:
        saved = find(folder)  # again, now that nobody else can write
        if saved is None:
            run.journal.read(0)
            return None
        restore(run, saved, folder)
        return saved.facts
    except InputError:
        run.journal.close()
        raise


def restore(run: Run, saved: Saved, folder: Path) -> None:
    """Put a freshly prepared run where the checkpoint says it stood.

    Raises InputError if data, partition or model are others, or if the checkpoint does not fit.
    """
    facts, content = saved.facts, saved.content
    try:
        refuse_changes(str(saved.path), dict(facts["surroundings"]), surroundings(run.worker))
        _check_state(run.state, content.state)
        arrays = records.to_record(content.state.tensors())  # as an aggregated state arrives
        tensors = records.from_record(arrays, run.worker.device)
        ordered = {n: tensors[n] for n in content.state.tensors()}
        state = AdapterState.from_tensors(ordered, content.state.round)
        run.ledger.load_events(facts["events"])
        run.rounds_taken = [int(n) for n in facts["rounds_taken"]]
        if len(run.rounds_taken) != run.settings.clients.number:
            raise ValueError("rounds_taken of another number of clients")
        run.attempt, run.seconds_before = int(facts["attempt"]), float(facts["seconds"])
        run.bytes_up, run.bytes_down = int(facts["bytes_up"]), int(facts["bytes_down"])
        run.noise = {n: (float(b), float(a)) for n, (b, a) in facts["noise"].items()}
        run.average = unpacked(content.tensors, facts["average"], run.worker.device)
        if run.client_level is not None:
            run.client_level = replace(run.client_level, clip_norm=float(facts["clip_norm"]))
        if not run.grid.holds_states and isinstance(run.strategy, Strategy) and run.strategy.keeps:
            raise InputError(
                "resume: what this strategy leaves with the clients is with the nodes of the Flower "
                "runtime, in no checkpoint; it cannot be continued there"
            )
        run.grid.restore(unpack_clients(content.tensors, facts["clients"]))
        unpack_strategy(run.strategy, content.tensors, facts["strategy"])
        run.history = read_metrics(folder, facts["metrics"])
        run.journal.read(int(facts["journal"]), facts["open"])
    except (KeyError, TypeError, ValueError, AttributeError, IndexError) as error:
        raise InputError(f"{saved.path}: is damaged or of another run: {error}") from error
    run.state = state
    _check_further(run, int(facts["planned_rounds"]))


def _check_state(initial: AdapterState, found: AdapterState) -> None:
    """Raise ValueError unless the names and shapes are those of the model."""
    expected, got = initial.tensors(), found.select(("A", "B", "extra"))
    if set(expected) != set(got):
        raise ValueError(f"its tensors are others ({sorted(set(expected) ^ set(got))[0]!r})")
    for name, tensor in expected.items():
        if tensor.shape != got[name].shape or tensor.dtype != got[name].dtype:
            raise ValueError(f"{name!r} has shape {tuple(got[name].shape)} and {got[name].dtype}")


def _check_further(run: Run, planned: int) -> None:
    """Raise InputError if more rounds are asked for than the plan or the past allows."""
    if run.rounds == planned:
        return
    sat_out = [m["round"] for m in run.history if m.get("sat_out")]
    if not run.worker.plan.private and sat_out:
        raise InputError(
            f"rounds: {run.rounds} is not allowed, it was {planned}: clients sat out in round "
            f"{sat_out[0]}, as the bound on their rounds follows from it"
        )
    if run.rounds > planned and all_spent(run):
        raise InputError(
            f"rounds: {run.rounds} is not allowed: the noise was calibrated for {planned} rounds, "
            "and no client's budget allows another"
        )


def read_metrics(folder: Path, told: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Return the lines of metrics.jsonl that the checkpoint knows; InputError if they are others."""
    path = folder / METRICS
    try:
        data = path.read_bytes()[: int(told["bytes"])]
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    if hashlib.sha256(data).hexdigest() != told["sha256"]:
        raise InputError(f"{path}: is damaged: it is not what the checkpoint was made with")
    return [json.loads(line) for line in data.decode().splitlines()]
