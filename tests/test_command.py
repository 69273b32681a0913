"""Hydra's command line as others meet it: callbacks, sweepers, notebooks, other Hydra apps."""

import json
import subprocess
import sys

import pytest
from hydra import compose, initialize_config_dir
from hydra.core.global_hydra import GlobalHydra
from hydra.core.utils import JobStatus
from hydra.experimental.callback import Callback

from fedsvd.command import in_order
from fedsvd.composing import config_folder
from fedsvd.errors import InputError
from fedsvd.run import main
from tests.tiny import make_inputs

SEEN: list[tuple[str, JobStatus, object]] = []


class Watcher(Callback):
    """Notes how jobs ended."""

    def on_job_end(self, config, job_return, **kwargs):
        SEEN.append(("job", job_return.status, job_return._return_value))

    def on_run_end(self, config, **kwargs):
        SEEN.append(("run", kwargs["job_return"].status, None))


WATCH = "+hydra.callbacks.watch._target_=tests.test_command.Watcher"


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return [*make_inputs(tmp_path_factory.mktemp("inputs")), "rounds=1"]


@pytest.fixture
def command(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedsvd"])
    SEEN.clear()

    def run(*arguments):
        status = main(list(arguments))
        return status, capfd.readouterr()

    return run


@pytest.mark.parametrize(
    ("bad", "message"),
    [
        ("privacy.epsilon=-1", "privacy.epsilon: -1.0 is not allowed"),
        ("adapter.rank=17", "adapter.rank: 17 is not allowed"),
        ("seed=${nowhere}", "seed: there is no key 'nowhere'"),
    ],
)
def test_a_refused_job_is_failed_for_callbacks(command, inputs, bad, message):
    status, told = command(*inputs, bad, WATCH)
    assert status == 2
    assert [(kind, s) for kind, s, _ in SEEN] == [
        ("job", JobStatus.FAILED), ("run", JobStatus.FAILED)
    ]  # fmt: skip
    assert isinstance(SEEN[0][2], InputError)
    assert told.err.startswith(f"error: {message}")
    assert len(told.err.splitlines()) == 1


def test_a_failure_of_ours_is_failed_for_callbacks_too(command, monkeypatch):
    def broken(*arguments):
        raise ZeroDivisionError("planted")

    monkeypatch.setattr("fedsvd.command.execute", broken)
    status, told = command(WATCH)
    assert status == 1
    assert SEEN[0][1] is JobStatus.FAILED
    assert told.err.startswith("error: a failure of this software: ZeroDivisionError: planted")
    assert len(told.err.splitlines()) == 1


def test_a_complete_job_is_complete(command, inputs, tmp_path):
    status, told = command(*inputs, WATCH, "hydra.run.dir=out")
    assert status == 0, told.err
    summary = json.loads((tmp_path / "out" / "summary.json").read_text())
    assert SEEN[0] == ("job", JobStatus.COMPLETED, summary["accuracy"])


@pytest.mark.parametrize(
    ("given", "status", "failed", "states"),
    [
        (["seed=0,1"], 0, [], "CC"),
        (["adapter.rank=2,17"], 1, [("trial 1 (adapter.rank=17)", "adapter.rank: 17")], "CF"),
        (["privacy.epsilon=-1,1"], 1, [("trial 0 (privacy.epsilon=-1)", "epsilon: -1.0")], "FC"),
        (["adapter.rank=17", "seed=0,1"], 2,
         [("trial 0 (seed=0)", "adapter.rank: 17"), ("trial 1 (seed=1)", "adapter.rank: 17")], "FF"),
        (["adapter.rank=17", "hydra/launcher=basic"], 2, [("trial 0", "adapter.rank: 17")], "F"),
    ],
)  # fmt: skip
def test_a_sweep_in_one_process(command, inputs, tmp_path, given, status, failed, states):
    found, told = command("-m", *inputs, *given, WATCH, "hydra.sweep.dir=sweep")
    assert found == status, told.err
    ends = [s for kind, s, _ in SEEN if kind == "job"]
    assert ends == [{"C": JobStatus.COMPLETED, "F": JobStatus.FAILED}[x] for x in states]
    for number, state in enumerate(states):
        assert (tmp_path / f"sweep/{number}/summary.json").exists() == (state == "C")
    lines = told.err.splitlines()
    assert len(lines) == (len(failed) + 1 if len(states) > 1 and failed else len(failed))
    for (name, reason), line in zip(failed, lines[-len(failed) :] if failed else [], strict=True):
        assert name in line
        assert reason in line
    if failed:
        assert lines[0].startswith("error: ")
    assert "Error executing" not in told.err + told.out
    if given == ["privacy.epsilon=-1,1"]:  # seen in the settings, and so told before the first
        assert told.out.startswith("trial 0 (privacy.epsilon=-1) will be refused: privacy.epsilon")


def test_two_commands_in_one_process(command):
    for _ in range(2):
        status, told = command("privacy.epsilon=-1")
        assert status == 2
        assert told.err.startswith("error: privacy.epsilon")


def test_within_another_use_of_hydra(command, inputs):
    with initialize_config_dir(str(config_folder()), version_base="1.3"):
        outer, argv = GlobalHydra.instance().hydra, list(sys.argv)
        status, told = command(*inputs, "hydra.run.dir=inner")
        assert status == 0, told.err
        assert GlobalHydra.instance().hydra is outer
        assert sys.argv == argv
        assert compose("config", ["seed=3"]).seed == 3


OUTER = """
import hydra
from hydra.core.global_hydra import GlobalHydra
from hydra.core.hydra_config import HydraConfig

from fedsvd.run import main


@hydra.main("conf", "app", version_base="1.2")
def job(config):
    print("status", main(["privacy.epsilon=-1"]))
    print(config.word, HydraConfig.get().job.config_name, GlobalHydra().is_initialized())


job()
"""


def test_within_a_job_of_another_hydra_app(tmp_path):
    """A process of its own: another app's Hydra sets up logging for all of the process."""
    (tmp_path / "conf").mkdir()
    (tmp_path / "conf" / "app.yaml").write_text("word: outer\n")
    (tmp_path / "app.py").write_text(OUTER)
    done = subprocess.run(
        [sys.executable, "app.py", "hydra.run.dir=outer", "hydra.output_subdir=null"],
        cwd=tmp_path, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines() == ["status 2", "outer app True"]
    assert "privacy.epsilon: -1.0 is not allowed" in done.stderr


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["hydra.run.dir=file"], "hydra.run.dir: the folder 'file' cannot be made: a file stands"),
        (["hydra.run.dir=file/x"], "hydra.run.dir: the folder 'file/x' cannot be made"),
        (["-m", "seed=0,1", "hydra.sweep.dir=file"], "hydra.sweep.dir: the folder 'file' cannot"),
        (["--lst"], "unrecognized arguments: --lst"),
        (["--cfg", "job", "-m"], "--cfg and --multirun: only one of them"),
        (["--config-name", "nope"], "nope: there is no such configuration"),
        (["--config-dir", "nowhere"], "Additional config directory"),
        (["data=null"], "Config group override must be a string or a list"),
        (["model=custom"], "model.name: must be given"),
    ],
)
def test_what_the_command_line_cannot_mean(command, tmp_path, given, message):
    (tmp_path / "file").write_text("mine\n")
    status, told = command(*given)
    assert status == 2
    assert told.err.startswith(f"error: {message}")
    assert len(told.err.splitlines()) == 1
    assert (tmp_path / "file").read_text() == "mine\n"
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == [tmp_path / "file"]


def test_overrides_may_stand_on_both_sides_of_options():
    given = ["seed=1", "-m", "rounds=1,2", "--config-dir", "x", "seed=1"]
    assert in_order(given) == ["-m", "--config-dir", "x", "seed=1", "rounds=1,2", "seed=1"]
