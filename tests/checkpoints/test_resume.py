"""Runs that stop anywhere and go on: the same bits, the same ledger, the same metrics."""

import json
import os
import shutil

import numpy as np
import pytest

from fedsvd import files
from fedsvd.errors import InputError, StorageError
from tests.tiny import outcome, run

CLIENT = ["privacy=client_level", "privacy.accountant=rdp", "privacy.diagnostics=false"]
VARIANTS = {
    "fedsvd": [],
    "a seed above 64 bits": [f"seed={2**70}"],
    "every two rounds": ["recorder.checkpoint_every=2", "recorder.keep=1"],
    "fedsa": ["strategy=fedsa"],
    "server optimiser": ["strategy=fedadam"],
    "stock with state": ["strategy._target_=flwr.serverapp.strategy.FedAdam"],
    "stock with momentum": [
        "strategy._target_=flwr.serverapp.strategy.FedAvgM", "+strategy.server_momentum=0.5",
    ],
    "moments that travel": [
        "strategy=dp_fedadamw", "training.optimizer=adamw", "training.lr=0.01",
    ],
    "tangent steps": ["strategy=prism", "training.local_steps=2"],
    "sides, shrunk, averaged": [
        "strategy=fedsvd_alternate", "strategy.strength=0.5", "strategy.first=A", "averaging=ema",
        "start=public", "start.steps=2", "data.public=8",
    ],
    "dense, averaged": ["strategy=flora", "averaging=tail", "averaging.start=0.2"],
    "dense": ["strategy=flora", "adapter.init=pissa"],
    "client": [*CLIENT, "privacy.clip_quantile=0.5"],
    "drawn by coins": [*CLIENT, "clients.participation=poisson"],
    "faults": [
        "faults=injected", "faults.kind=raise", "faults.rate=0.4", "faults.min_replies=2",
        "privacy=none",
    ],
    "faults, client": [*CLIENT, "faults=injected", "faults.kind=nan", "faults.rate=0.4"],
}  # fmt: skip


class Kill(BaseException):
    """The process stops here."""


class Disk:
    """Counts what is made to last on the disk, and stops the process before the n-th."""

    def __init__(self, monkeypatch):
        self.count, self.stop, self.real = 0, None, os.fsync
        monkeypatch.setattr(files.os, "fsync", self.fsync)

    def fsync(self, descriptor):
        if self.stop is not None and self.count >= self.stop:
            raise Kill
        self.count += 1
        self.real(descriptor)


@pytest.fixture
def disk(monkeypatch):
    return Disk(monkeypatch)


@pytest.mark.parametrize("name", VARIANTS)
def test_killed_and_resumed_is_as_if_nothing_happened(name, inputs, tmp_path, disk):
    overrides = [*inputs, *VARIANTS[name]]
    run(tmp_path / "straight", overrides)
    total = disk.count
    rng = np.random.default_rng(len(name))
    disk.count, disk.stop = 0, int(rng.integers(total // 4, total))
    with pytest.raises(Kill):
        run(tmp_path / "run", overrides)
    disk.count, disk.stop = 0, 5
    with pytest.raises(Kill):
        run(tmp_path / "run", overrides, "resume=auto")
    disk.stop = None
    run(tmp_path / "run", overrides, "resume=auto")
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


@pytest.fixture(scope="module")
def half(inputs, tmp_path_factory):
    """A run that stopped after round 2 of 4, and the same run straight through."""
    folder = tmp_path_factory.mktemp("half")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("fedsvd.recorders.report.write_report", lambda *_: None)
        run(folder / "straight", inputs)
        stop_after(patch, 2)
        with pytest.raises(Kill):
            run(folder / "run", inputs)
    return folder


def stop_after(patch, number):
    from fedsvd import experiment

    real = experiment.one_round

    def dying(run, n):
        metrics = real(run, n)
        if n > number:
            raise Kill
        return metrics

    patch.setattr(experiment, "one_round", dying)


def copy(half, tmp_path):
    shutil.copytree(half / "run", tmp_path / "run")
    return tmp_path / "run"


def test_every_stop_of_the_disk_leaves_a_run_that_goes_on(inputs, half, tmp_path, disk):
    for stop in (1, 4, 5, 6, 9, 11):  # among a round's writes
        folder = tmp_path / str(stop)
        shutil.copytree(half / "run", folder)
        disk.count, disk.stop = 0, stop
        with pytest.raises(Kill):
            run(folder, inputs, "resume=auto", "rounds=4")
        disk.stop = None
        run(folder, inputs, "resume=auto")
        assert outcome(folder)[:3] == outcome(half / "straight")[:3]


def test_a_damaged_checkpoint_is_named_and_the_one_before_used(inputs, half, tmp_path, capsys):
    folder = copy(half, tmp_path)
    newest = folder / "checkpoints" / "round-000002.safetensors"
    newest.write_bytes(newest.read_bytes()[:5000])
    run(folder, inputs, "resume=auto")
    assert "round-000002.safetensors: is damaged" in capsys.readouterr().err
    assert outcome(folder) == outcome(half / "straight")


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        ("checkpoints", r"round-000002.*is damaged.*round-000001.*is damaged"),
        ("metrics.jsonl", r"metrics\.jsonl: is damaged"),
        ("journal.jsonl", r"journal\.jsonl: line 2 is damaged"),
        ("journal short", r"journal\.jsonl: holds 2 lines; the checkpoint was made after 4"),
        ("config.yaml", r"config\.yaml: cannot be read"),
        ("config list", r"config\.yaml: holds no configuration"),
    ],
)
def test_what_cannot_be_trusted_is_refused_by_name(damage, message, inputs, half, tmp_path):
    folder = copy(half, tmp_path)
    if damage == "checkpoints":
        for path in (folder / "checkpoints").glob("round-*"):
            path.write_bytes(b"x" * 100)
    elif damage.startswith("journal"):
        lines = (folder / "journal.jsonl").read_text().splitlines()
        lines[1] = lines[1].replace("0", "1", 1)
        kept = lines[:2] if damage.endswith("short") else lines
        (folder / "journal.jsonl").write_text("\n".join(kept) + "\n")
        if damage.endswith("short"):
            return  # its second line is damaged as well: told first or second, never used
    elif damage == "metrics.jsonl":
        (folder / damage).write_text((folder / damage).read_text().replace("0", "1", 1))
    else:
        text = "- 1\n" if damage == "config list" else "a: [\n"
        (folder / "config.yaml").write_text(text)
    with pytest.raises(InputError, match=message):
        run(folder, inputs, f"resume={folder}")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ("training.lr=0.1", r"training\.lr was 0\.8, now 0\.1"),
        ("seed=1", "seed was 0, now 1"),
        ("privacy.epsilon=3", r"privacy\.epsilon was 1\.0, now 3\.0"),
        ("strategy=ffa", r"strategy\._target_ was 'fedsvd\.strategies\.FedSVD'"),
        ("strategy.period=2", r"strategy\.period was 1, now 2"),
        ("clients.number=7", r"clients\.number was 6, now 7"),
        ("engine.threads=2", r"engine\.threads was 1, now 2"),
        ("rounds=1", r"rounds: 1 is not allowed; it must be at least 2"),
        ("rounds=9", r"rounds: 9 is not allowed.*training\.schedule=linear"),
        ("data.limit=60", r"data\.limit was None, now 60"),
        ("privacy=none", r"privacy\.unit was 'example', now 'none'"),
    ],
)
def test_what_would_change_the_past_is_refused_by_key(change, message, inputs, half, tmp_path):
    folder = copy(half, tmp_path)
    before = {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()}
    with pytest.raises(InputError, match=message):
        run(folder, inputs, "resume=auto", change)
    with pytest.raises(InputError, match=message):
        run(folder, [], f"resume={folder}", change)
    assert {p: p.read_bytes() for p in folder.rglob("*") if p.is_file()} == before


def test_other_data_of_the_same_name_are_refused(inputs, half, tmp_path):
    folder = copy(half, tmp_path)
    path = next(o for o in inputs if o.startswith("data.path=")).removeprefix("data.path=")
    other = tmp_path / "other.csv"
    with open(path) as file:
        other.write_text(file.read().replace("good", "fine", 1))
    with pytest.raises(InputError, match="data was"):
        run(folder, inputs, "resume=auto", f"data.path={other}")


def test_resume_by_folder_takes_the_runs_own_configuration(inputs, half, tmp_path):
    folder = copy(half, tmp_path)
    run(folder, [], f"resume={folder}", "recorder.keep=1")
    assert outcome(folder) == outcome(half / "straight")
    assert len(list((folder / "checkpoints").glob("round-*"))) == 1
    again = run(folder, [], f"resume={folder}")  # nothing is left to do
    assert again["state_digest"] == outcome(folder)[0]


def test_further_rounds_need_a_budget(inputs, tmp_path):
    constant = [*inputs, "training.schedule=constant", "rounds=2"]
    run(tmp_path / "a", constant)
    with pytest.raises(
        InputError, match=r"rounds: 4 .*calibrated for 2 rounds.*no client's budget"
    ):
        run(tmp_path / "a", constant, "resume=auto", "rounds=4")
    uniform = [*constant, "clients.participation=uniform", "clients.max_rounds=2"]
    run(tmp_path / "b", uniform)
    longer = run(tmp_path / "b", uniform, "resume=auto", "rounds=4")
    assert longer["rounds_completed"] == 4
    ledger = json.loads((tmp_path / "b" / "privacy.json").read_text())
    assert all(c["steps"] <= c["steps_bound"] == 2 for c in ledger["clients"])
    assert longer["epsilon_max"] <= 1
    free = [*constant, "privacy=none"]
    run(tmp_path / "c", free)
    run(tmp_path / "c", free, "resume=auto", "rounds=4")
    run(tmp_path / "d", free, "rounds=4")
    assert outcome(tmp_path / "c")[0] == outcome(tmp_path / "d")[0]


def test_with_noise_of_the_system_work_done_twice_is_spent_twice(inputs, tmp_path, monkeypatch):
    secure = [*inputs, "privacy.secure_noise=true", "clients.participation=all", "rounds=3"]
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Kill):
            run(tmp_path / "run", secure)
    summary = run(tmp_path / "run", secure, "resume=auto")
    ledger = json.loads((tmp_path / "run" / "privacy.json").read_text())
    for client in ledger["clients"]:
        # One step a round: 1, 2 (lost), 2 again; then the bound of three is reached.
        assert [e["round"] for e in client["events"]] == [1, 2, 2]
        assert client["steps"] == client["steps_bound"] == 3
    assert summary["ended"] == "no client may take part in another round"


def test_hidden_participants_are_drawn_anew_and_every_attempt_is_spent_by_everybody(
    inputs, tmp_path
):
    hidden = [
        *inputs, *CLIENT, "privacy.threat_model=trusted_server", "privacy.secure_noise=true",
        "clients.participation=poisson", "clients.number=20", "clients.per_round=10", "rounds=5",
    ]  # fmt: skip
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 1)
        with pytest.raises(Kill):
            run(tmp_path / "run", hidden)
    run(tmp_path / "run", hidden, "resume=auto")
    lines = (tmp_path / "run" / "journal.jsonl").read_text().splitlines()
    told = [json.loads(json.loads(line)["told"]) for line in lines]
    asked = {(t["round"], t["attempt"]): t["clients"] for t in told if t["kind"] == "asked"}
    assert list(asked) == [(1, 0), (2, 0), (2, 1), (3, 0), (4, 0)]  # 2 was lost; five is the bound
    assert asked[2, 0] != asked[2, 1]  # alike with a probability of at most 2^-20
    ledger = json.loads((tmp_path / "run" / "privacy.json").read_text())
    for client in ledger["clients"]:
        assert [e["round"] for e in client["events"]] == [1, 2, 2, 3, 4]
        assert {e["sample_rate"] for e in client["events"]} == {0.5}
    with pytest.MonkeyPatch.context() as patch:
        stop_after(patch, 2)
        with pytest.raises(Kill):
            run(tmp_path / "last", hidden, "rounds=3")
    ended = run(tmp_path / "last", hidden, "rounds=3", "resume=auto")
    ledger = json.loads((tmp_path / "last" / "privacy.json").read_text())
    assert [e["round"] for e in ledger["clients"][0]["events"]] == [1, 2, 3]  # not 3 again
    assert ended["epsilon_max"] <= ended["epsilon_target"]
    run(tmp_path / "other", hidden, "rounds=3")
    lines = (tmp_path / "other" / "metrics.jsonl").read_text().splitlines()
    again = [json.loads(line)["clients"] for line in lines][1:]
    assert again != [asked[1, 0], asked[2, 1], asked[3, 0]]  # the seed does not tell who takes part


def test_rounds_that_are_not_done_again_identically_are_spent_and_drawn_anew(
    inputs, half, tmp_path, monkeypatch
):
    """The journal knows a round from other bits: other streams, and both count."""
    folder = copy(half, tmp_path)
    from fedsvd.rounds import again, attempt

    monkeypatch.setattr(again, "_position", lambda run: "elsewhere")
    attempts = []
    real = attempt._ask

    def ask(run, messages, wanted, entry):
        attempts.append((entry.round, entry.attempt))
        return real(run, messages, wanted, entry)

    monkeypatch.setattr(attempt, "_ask", ask)
    summary = run(folder, inputs, "resume=auto")
    assert attempts[0] == (3, 1)
    ledger = json.loads((folder / "privacy.json").read_text())
    threes = sum(e["round"] == 3 for c in ledger["clients"] for e in c["events"])
    assert threes > 3 or summary["ended"]
    assert all(c["epsilon"] <= 1 for c in ledger["clients"])


def test_a_second_process_is_kept_out(inputs, half, tmp_path):
    from fedsvd.rounds.journal import Journal

    folder = copy(half, tmp_path)
    holder = Journal(folder / "journal.jsonl")
    holder.lock()
    with pytest.raises(InputError, match="another process runs in this folder"):
        run(folder, inputs, "resume=auto")
    holder.close()


def test_a_full_disk_is_named_and_the_checkpoint_before_stays(inputs, half, tmp_path, monkeypatch):
    folder = copy(half, tmp_path)
    real = files.os.fsync

    def full(descriptor):
        if os.readlink(f"/proc/self/fd/{descriptor}").endswith("000003.safetensors.tmp"):
            raise OSError(28, "No space left on device")
        real(descriptor)

    monkeypatch.setattr(files.os, "fsync", full)
    with pytest.raises(StorageError, match=r"round-000003.*No space left.*resume="):
        run(folder, inputs, "resume=auto")
    monkeypatch.undo()
    assert not list(folder.rglob("*.tmp"))
    run(folder, inputs, "resume=auto")
    assert outcome(folder) == outcome(half / "straight")


def test_a_folder_that_cannot_be_written_is_named(tmp_path):
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(StorageError, match=r"file/x\.json: cannot be written: "):
        files.write_json(tmp_path / "file" / "x.json", {})


def test_a_strategy_that_keeps_what_cannot_be_kept_is_refused():
    from fedsvd.checkpoints.kept import pack_strategy
    from fedsvd.strategies import FFA

    strategy = FFA()
    strategy.seen = object()
    with pytest.raises(InputError, match="FFA keeps 'seen' of type object"):
        pack_strategy(strategy, {})
    pack_strategy(strategy, {"seen": strategy.seen})
