"""SIGTERM, Ctrl-C and SIGKILL of real processes and of this one."""

import os
import signal
import sys
from pathlib import Path

import pytest

from experiments.resume.kill import trials
from fedsvd.rounds import attempt
from fedsvd.run import main
from tests.tiny import outcome


@pytest.fixture
def command(inputs, monkeypatch):
    monkeypatch.setattr(sys, "argv", ["fedsvd"])

    def run(folder, *more):
        return main([*inputs, *more, f"hydra.run.dir={folder}"])

    return run


def signal_in_round(monkeypatch, number, *signals):
    """Send this process signals while a client trains in a round."""
    real = attempt._ask

    def ask(run, messages, wanted, entry):
        if entry.round == number:
            for signum in signals:
                os.kill(os.getpid(), signum)
        return real(run, messages, wanted, entry)

    monkeypatch.setattr(attempt, "_ask", ask)


@pytest.mark.parametrize(
    ("signum", "status"), [(signal.SIGTERM, 143), (signal.SIGINT, 130)], ids=["TERM", "INT"]
)
def test_the_first_signal_finishes_the_round(signum, status, command, tmp_path, monkeypatch, capfd):
    before = signal.getsignal(signum)
    with monkeypatch.context() as patch:
        signal_in_round(patch, 2, signum)
        assert command(tmp_path / "run") == status
    told = capfd.readouterr().err
    assert "finishing the round; once more stops at once" in told
    assert f"stopped after round 2; to go on: python -m fedsvd.run resume={tmp_path}/run" in told
    assert "Traceback" not in told
    assert signal.getsignal(signum) == before
    assert (tmp_path / "run" / "checkpoints" / "round-000002.safetensors").exists()
    assert main([f"resume={tmp_path / 'run'}"]) == 0
    assert command(tmp_path / "straight") == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


def test_a_second_signal_stops_at_once(command, tmp_path, monkeypatch, capfd):
    with monkeypatch.context() as patch:
        signal_in_round(patch, 2, signal.SIGINT, signal.SIGTERM)
        assert command(tmp_path / "run") == 143
    assert "terminated; to go on: python -m fedsvd.run resume=" in capfd.readouterr().err
    rounds = sorted(p.name for p in (tmp_path / "run" / "checkpoints").glob("round-*"))
    assert rounds == ["round-000000.safetensors", "round-000001.safetensors"]
    assert command(tmp_path / "run", "resume=auto") == 0
    assert command(tmp_path / "straight") == 0
    assert outcome(tmp_path / "run") == outcome(tmp_path / "straight")


def test_too_few_replies_stop_the_run_with_status_1(command, tmp_path, capfd):
    faulty = ["faults=injected", "faults.rate=1", "faults.min_replies=1", "faults.below=stop"]
    assert command(tmp_path / "run", *faulty) == 1
    told = capfd.readouterr().err
    assert "round 1: 0 valid replies of 3, faults.min_replies=1" in told
    assert "to go on: python -m fedsvd.run resume=" in told
    assert "Traceback" not in told


@pytest.mark.filterwarnings("ignore:.*fork.*:DeprecationWarning")
def test_killed_processes_resume_to_the_same_outcome(inputs, tmp_path):
    """The harness of experiments/resume on the tiny model: SIGKILL at random moments."""
    import fedsvd.recorders.report  # noqa: F401

    found = trials(Path(tmp_path), [*inputs, "resume=auto"], 3)
    assert len(found) == 3
    assert all(same for _, _, same in found), found
