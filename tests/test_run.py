"""The command line: what is wrong is told in one line, with status 2, before any work."""

import os
import re
import shlex
import subprocess
import sys
from pathlib import Path

import pytest

from fedsvd.composing import config_folder
from fedsvd.privacy.plan import weighting
from fedsvd.run import main
from tests.conftest import SMALL

BAD = [
    (["epsilon=1"], "epsilon: there is no such key"),
    (["privacy.epsillon=1"], "did you mean privacy.epsilon"),
    (["trainning.lr=1"], "did you mean training"),
    (["+experiment=dp_eps2"], "choose from"),
    (["strategy=fedsdv"], "did you mean 'fedsvd'"),
    (["privacy.epsilon=0"], "privacy.epsilon: 0.0 is not allowed"),
    (["privacy.epsilon=-1"], "privacy.epsilon: -1.0 is not allowed"),
    (["privacy.epsilon=one"], "privacy.epsilon: 'one' is not allowed; it must be a number"),
    (["privacy.delta=0.01"], "privacy.delta: 0.01 is not allowed; it must be below 1/n"),
    (["privacy.delta=2"], "privacy.delta"),
    (["privacy.clip_norm=0"], "privacy.clip_norm"),
    (["privacy.accountant=prw"], "did you mean 'prv'"),
    (["adapter.rank=0"], "adapter.rank: 0 is not allowed"),
    (["adapter.rank=385", *SMALL], "adapter.rank: 385 is not allowed; it must be at most 384"),
    (["adapter.targets=[qery]", *SMALL], "no linear layer of the model is called 'qery'"),
    (["clients.per_round=7"], "clients.per_round: 7 is not allowed; it must be at most"),
    (["clients.number=0"], "clients.number"),
    (["rounds=0"], "rounds: 0 is not allowed"),
    (["rounds=1.5"], "rounds: 1.5 is not allowed; it must be a whole number"),
    (["training.lr=0"], "training.lr"),
    (["training.optimizer=adam"], "did you mean 'adamw'"),
    (["device=tpu"], "device: 'tpu'"),
    (["partition.alpha=0.001", "clients.number=100"], "is left with 0 examples"),
    (["data.path=/no/such/folder"], "data.path: '/no/such/folder' does not exist"),
    (["data.text=[sentence]"], "no column 'sentence' (data.text)"),
    (["model.name=/no/such/model"], "model.name: folder '/no/such/model' does not exist"),
    (["model.head=traned"], "did you mean 'trained'"),
    (["adapter=none", "model.head=frozen_random"], "nothing would train"),
    (["strategy._target_=no_lab.Mine"], "cannot be imported"),
    (["strategy._target_=Mine"], "it must be the import path"),
    (["strategy._target_=fedsvd.strategies.Strategy"], "lacks the method aggregate"),
    (["strategy.period=0"], "strategy.period: 0 is not allowed"),
    (["strategy=ffa", "+strategy.period=2"], "strategy.period: 'period' is not allowed"),
    (["strategy=geometric_median", "training.factors=AB"], "training.factors: 'AB' is not allowed"),
    (["rounds=2=3"], ""),
    (["model=custom"], "model.name: must be given"),
    (["data=folder"], "data: needed too: data.path (a folder"),
    (["data=sst2"], "data: needed too: data.label_texts ("),
    (["rounds=${round}"], "rounds: there is no key 'round'"),
    (["data.path=${oc.env:NOWHERE_AT_ALL}"], "data.path: Environment variable"),
]


@pytest.mark.parametrize(
    ("arguments", "message"), BAD, ids=lambda v: " ".join(v)[:40] if isinstance(v, list) else ""
)
def test_bad_input(arguments, message, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedsvd"])
    status = main(arguments)
    told = capfd.readouterr()
    lines = [x for x in told.err.splitlines() if x.strip()]
    assert status == 2
    assert len(lines) == 1, told.err
    assert lines[0].startswith("error: ")
    assert message in lines[0]
    assert "Traceback" not in told.out + told.err
    assert list(tmp_path.iterdir()) == []


def test_a_refused_run_takes_empty_folders_of_its_own_away_alone(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedsvd"])
    (tmp_path / "outputs" / "2026-01-02" / "before").mkdir(parents=True)
    for folder in ("outputs/2026-01-02/x", "mine/2026-01-02/x"):
        assert main(["rounds=0", f"hydra.run.dir={folder}"]) == 2
    assert "rounds: 0 is not allowed" in capfd.readouterr().err
    found = sorted(str(p.relative_to(tmp_path)) for p in tmp_path.rglob("*"))
    kept = ["mine", "mine/2026-01-02", "outputs", "outputs/2026-01-02", "outputs/2026-01-02/before"]
    assert found == kept  # a folder that the user named may be the user's own


def test_a_folder_that_holds_a_run_is_left_alone(tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "argv", ["fedsvd"])
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "config.yaml").write_text("precious: true\n")
    assert main([*SMALL, "hydra.run.dir=old"]) == 2
    assert "holds another run" in capfd.readouterr().err
    assert (tmp_path / "old" / "config.yaml").read_text() == "precious: true\n"
    assert len(list((tmp_path / "old").iterdir())) == 1


def test_help_names_groups_and_keys(tmp_path):
    done = subprocess.run(
        [sys.executable, "-m", "fedsvd.run", "--help"],
        capture_output=True, text=True, check=False, cwd=tmp_path,
        env={**os.environ, "PYTHONPATH": os.getcwd()},
    )  # fmt: skip
    assert done.returncode == 0
    assert "+experiment=NAME" in done.stdout
    assert "fedsvd, fedsvd_alternate, fedsvd_dct" in done.stdout
    assert "clip_norm" in done.stdout


PAPER = ["mnli", "offline_rotten_tomatoes", "qnli", "qqp", "snli", "sst2"]


@pytest.mark.parametrize("task", PAPER)
def test_paper_presets_hold_the_published_setting(settings, task):
    s = settings(f"+experiment=paper/{task}")
    offline = task.startswith("offline")
    name = "sentence-transformers/all-MiniLM-L6-v2" if offline else "FacebookAI/roberta-large"
    assert s.model.name == name
    assert (s.model.head, s.model.head_form, s.model.pooling) == (
        "frozen_random", "two_layer", "cls",
    )  # fmt: skip
    assert (s.model.normalize, s.model.logit_scale, s.model.head_bias) == (False, 1.0, True)
    assert (s.model.dropout, s.model.max_length) == (0.1, 128)
    assert (s.adapter.rank, s.adapter.alpha, s.adapter.dropout) == (8, 8.0, 0.05)
    assert (s.adapter.init, s.adapter.targets) == ("kaiming", ("query", "value"))
    assert (s.clients.number, s.clients.per_round, s.partition.name) == (6, 3, "published")
    assert s.clients.participation == "uniform"
    assert weighting(s) == "examples"
    assert (s.training.momentum, s.training.weight_decay) == (0.0, 0.0)
    assert (s.training.clip_norm, s.training.precision) == (1.0, "fp32")
    assert (s.privacy.epsilon, s.privacy.accounting) == (6.0, "paper")
    assert (s.rounds, s.training.local_steps, s.training.batch_size) == (100, 10, 128)
    assert (s.training.lr, s.training.schedule, s.training.optimizer) == (0.5, "constant", "sgd")
    assert (s.privacy.clip_norm, s.privacy.delta, s.privacy.accountant) == (2.0, 1e-5, "prv")
    assert s.data.name == task.removeprefix("offline_")


def test_each_choice_of_the_paper_is_one_override_away(settings):
    """The commands of docs/paper.md compose, and each changes what the page says."""
    page = (Path(__file__).parent.parent / "docs" / "paper.md").read_text(encoding="utf-8")
    given = re.findall(r"^\| [^|]+ \|[^|]+\| `([^`]+)` \|", page, re.M)
    assert len(given) > 12
    whole = settings("+experiment=paper/offline_rotten_tomatoes")
    for one in given:
        found = settings("+experiment=paper/offline_rotten_tomatoes", *shlex.split(one))
        assert found != whole, one
    for task in PAPER:
        told = (config_folder() / "experiment" / "paper" / f"{task}.yaml").read_text()
        assert f"+experiment=paper/{task}\n" in told
        assert "Different from" in told


def test_the_paper_without_privacy(settings):
    s = settings("+experiment=paper/sst2", "privacy=none")
    assert (s.privacy.unit, weighting(s), s.training.clip_norm) == ("none", "examples", 1.0)


@pytest.mark.parametrize(
    "name",
    ["quickstart", "no_dp", "dp_eps1", "dp_eps3", "dp_eps6", "control_ffa_orthonormal",
     "control_ffa_sqrt3", "dp_eps1_public"],
)  # fmt: skip
def test_experiments_compose(settings, name):
    s = settings(f"+experiment={name}")
    expected = {"dp_eps1": 1.0, "dp_eps1_public": 1.0, "dp_eps3": 3.0, "dp_eps6": 6.0}.get(name)
    if expected:
        assert (s.privacy.unit, s.privacy.epsilon) == ("example", expected)
    if name.startswith("control"):
        assert s.strategy.target.endswith("FFA")
