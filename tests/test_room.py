"""How much room a task leaves to adapters: what is trained, what is recorded, what the table says."""

import json

import pytest
import torch

from experiments.suite import room
from fedsvd.client.worker import build_worker
from tests.conftest import compose_settings
from tests.tiny import make_inputs

KEY = {"task": "tiny", "model": "bert", "lr": 1e-2, "steps": 3}


@pytest.fixture(scope="module")
def suite(tmp_path_factory):
    given = make_inputs(tmp_path_factory.mktemp("inputs"))
    return {"tasks": {"tiny": given[:4]}, "models": {"bert": {"overrides": given[4:6]}}}


@pytest.fixture
def seen(monkeypatch):
    """The worker of the last training, and its backbone's weights before the first step."""
    found = {}

    def build(settings):
        found["worker"] = build_worker(settings)
        named = found["worker"].model.backbone.named_parameters()
        found["before"] = {n: p.detach().clone() for n, p in named}
        return found["worker"]

    monkeypatch.setattr("fedsvd.client.worker.build_worker", build)
    return found


def changed(seen):
    named = seen["worker"].model.backbone.named_parameters()
    return {n for n, p in named if not torch.equal(p, seen["before"][n])}


@pytest.mark.parametrize("what", room.RATES)
def test_each_kind_of_training_moves_what_it_says(what, suite, seen):
    found = room.train(suite, KEY | {"what": what})
    assert set(found) == {"accuracy", "majority"}
    assert 0 <= found["accuracy"] <= 1
    assert 0.5 <= found["majority"] < 1
    named = dict(seen["worker"].model.backbone.named_parameters())
    moved, factors = changed(seen), {n for n in named if "lora_" in n}
    if what in ("full", "random"):
        assert not factors
        # Keys have no bias in effect (softmax takes it out), and texts are all of one type.
        assert {n for n in named if "key.bias" not in n and "token_type" not in n} <= moved
    else:
        assert moved == factors
        assert bool(factors) == (what == "lora")
    head = seen["worker"].model.head.weight
    assert bool(head.abs().max() > 0)


def test_only_a_random_start_forgets(suite, seen):
    for what in room.RATES:
        room.train(suite, KEY | {"what": what, "lr": 0.0})
        named = seen["worker"].model.backbone.named_parameters()
        assert changed(seen) == ({n for n, p in named if p.ndim > 1} if what == "random" else set())


def test_a_random_start_forgets_what_was_pretrained(suite):
    settings = compose_settings(
        *suite["tasks"]["tiny"], *suite["models"]["bert"]["overrides"], "partition=iid",
        "adapter=none", "privacy=none", "model.head=trained", "model.head_init=zeros",
    )  # fmt: skip
    drawn = []
    for _ in range(2):
        backbone = build_worker(settings).model.backbone
        with torch.no_grad():
            for p in backbone.parameters():
                p.add_(1)
        room._forget(backbone)
        drawn.append(dict(backbone.named_parameters()))
    for name, p in drawn[0].items():
        assert torch.equal(p, drawn[1][name])
        if p.ndim > 1:
            wide = 5 * 0.02 / p.numel() ** 0.5  # five standard errors of the mean
            assert abs(float(p.mean())) < wide
            assert float(p.std()) == pytest.approx(0.02, rel=5 / (2 * p.numel()) ** 0.5)
        else:
            assert (p == (0 if name.endswith("bias") else 1)).all()


def write(file, *runs, task="vader", steps=9):
    lines = [
        {"task": task, "model": "bert_tiny", "what": what, "lr": lr, "steps": steps,
         "accuracy": accuracy, "majority": 0.4}
        for what, lr, accuracy in runs
    ]  # fmt: skip
    with file.open("a") as out:
        out.writelines(json.dumps(line) + "\n" for line in lines)


RUNS = ("head", 1e-2, 0.5), ("head", 1e-3, 0.55), ("lora", 5e-3, 0.65), ("lora", 1e-3, 0.6)


def test_room_is_what_lora_gains_over_the_head_alone(tmp_path):
    file = tmp_path / "room.jsonl"
    write(file, *RUNS)
    (row,) = room.table(file, ["bert_tiny"], ["vader", "squad_pairs"], 9)[2:]
    assert row == "| bert_tiny | vader | 0.400 | 0.550 | 0.650 | - | - | +0.100, yes |"


def test_runs_of_other_lengths_stand_in_other_tables(tmp_path):
    file = tmp_path / "room.jsonl"
    write(file, *RUNS)
    write(file, ("head", 1e-2, 0.7), ("lora", 1e-3, 0.9), ("full", 1e-3, 0.95), steps=99)
    (short,) = room.table(file, ["bert_tiny"], ["vader"], 9)[2:]
    assert short.endswith("| 0.550 | 0.650 | - | - | +0.100, yes |")
    (long,) = room.table(file, ["bert_tiny"], ["vader"], 99)[2:]
    assert long.endswith("| 0.700 | 0.900 | 0.950 | - | +0.200, yes |")
    assert room.table(file, ["bert_tiny"], ["vader"], 10)[2:] == []


def test_the_table_alone_trains_nothing(tmp_path, capsys, monkeypatch):
    monkeypatch.setattr(room, "train", None)  # not to be called
    file = tmp_path / "room.jsonl"
    write(file, *RUNS)
    before = file.read_bytes()
    told = ["vader", "--results", str(file), "--steps", "9"]
    assert room.main([*told, "--table"]) == 0
    assert "| bert_tiny | vader |" in capsys.readouterr().out
    assert file.read_bytes() == before
    with pytest.raises(TypeError, match="not callable"):
        room.main(told)


def test_what_is_recorded_is_not_trained_again(tmp_path, monkeypatch, suite):
    file, made = tmp_path / "room.jsonl", []

    def train(suite, key):
        made.append((key["what"], key["lr"]))
        return {"accuracy": 0.5, "majority": 0.4}

    monkeypatch.setattr(room, "train", train)
    write(file, *RUNS[:3])
    room.make(suite, file, ["bert_tiny"], ["vader"], 9)
    every = {(what, lr) for what, rates in room.RATES.items() for lr in rates}
    assert set(made) == every - {(what, lr) for what, lr, _ in RUNS[:3]}
    made.clear()
    room.make(suite, file, ["bert_tiny"], ["vader"], 9)
    assert made == []


def test_an_unknown_name_is_told(capsys):
    for told in (["mine", "--table"], ["vader", "--table", "--models", "mine"]):
        with pytest.raises(SystemExit):
            room.main(told)
        assert "'mine' is not in suite.yaml" in capsys.readouterr().err
