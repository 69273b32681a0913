"""Averaged models in real runs: what is evaluated and exported, and what stays as it was."""

import json

import numpy as np
import pytest
import torch
from safetensors.torch import load_file

from fedsvd.checkpoints.checkpoint import read_whole
from fedsvd.errors import InputError
from fedsvd.settings import AveragingSettings
from fedsvd.strategies.use import check_use
from tests.tiny import make_inputs, run


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return [*make_inputs(tmp_path_factory.mktemp("inputs")), "recorder.keep=9"]


@pytest.fixture(autouse=True)
def no_report(monkeypatch):
    monkeypatch.setattr("fedsvd.recorders.report.write_report", lambda *_: None)


def lines(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def states(folder):
    return [read_whole(p).state for p in sorted((folder / "checkpoints").glob("round-*"))]


EMA = ["averaging=ema", "averaging.decay=0.5"], {1: 1 / 15, 2: 2 / 15, 3: 4 / 15, 4: 8 / 15}
TAIL = ["averaging=tail"], {3: 1 / 2, 4: 1 / 2}
MIDDLE = ["averaging=tail", "averaging.start=0.25", "averaging.end=0.75"], {2: 1 / 2, 3: 1 / 2}


@pytest.mark.parametrize(
    ("name", "given", "weights"),
    [
        ("fedsvd_alternate", *EMA), ("fedsvd_alternate", *MIDDLE), ("fedavg", *TAIL),
        ("median", *EMA),  # one of Flower's
    ],
    ids=["alternate, ema", "alternate, two-ended", "fedavg, tail", "Flower's, ema"],
)  # fmt: skip
def test_what_is_exported_is_the_average_of_the_rounds(name, given, weights, inputs, tmp_path):
    overrides = [*inputs, f"strategy={name}", "training.lr=2"]
    summary = run(tmp_path / "run", [*overrides, *given])
    rounds = states(tmp_path / "run")
    assert [s.round for s in rounds] == [0, 1, 2, 3, 4]
    told = load_file(tmp_path / "run" / "adapter" / "adapter_model.safetensors")
    for layer, pair in rounds[0].factors.items():
        dense = sum(w * rounds[n].factors[layer].product().double() for n, w in weights.items())
        U, s, Vh = np.linalg.svd(dense.numpy())
        best = (U[:, : pair.rank] * s[: pair.rank]) @ Vh[: pair.rank]
        A, B = (told[f"base_model.model.{layer}.lora_{k}.weight"].double() for k in "AB")
        np.testing.assert_allclose((B @ A).numpy(), best, atol=1e-6)
        assert A.shape == pair.A.shape
        assert np.abs(best - rounds[-1].factors[layer].product().numpy()).max() > 1e-4
    head = load_file(tmp_path / "run" / "classifier" / "head.safetensors")["head.weight"]
    mean = sum(w * rounds[n].extra["head.weight"].double() for n, w in weights.items())
    torch.testing.assert_close(head.double(), mean, atol=1e-6, rtol=0)
    last = lines(tmp_path / "run")[-1]
    assert last["loss"] == summary["loss"] != last["raw_loss"]
    assert summary["state_digest"] == rounds[-1].digest() != summary["average_digest"]
    assert f"rounds {min(weights)} to {max(weights)}" in summary["averaging"]
    card = (tmp_path / "run" / "adapter" / "README.md").read_text()
    assert f"- Averaging: {summary['averaging']}" in card
    assert "averaging:\n  name: " in (tmp_path / "run" / "config.yaml").read_text()


def test_clients_go_on_from_what_they_would_have_without_it(inputs, tmp_path, capsys):
    averaged = run(tmp_path / "a", [*inputs, "averaging=ema"])
    told = capsys.readouterr().out
    assert "ema, decay 0.9, of the models after rounds 1 to 4" in told
    assert "of the last model" in told
    plain = run(tmp_path / "b", inputs)
    assert averaged["state_digest"] == plain["state_digest"]
    assert (plain["average_digest"], plain["raw_accuracy"]) == (None, None)
    assert plain["averaging"] == "none: the last model"
    for one, other in zip(lines(tmp_path / "a"), lines(tmp_path / "b"), strict=True):
        same = {"round", "clients", "epsilon", "train_loss", "reports", "bytes_up", "bytes_down"}
        assert {k: one.get(k) for k in same} == {k: other.get(k) for k in same}
        if "raw_loss" in one:
            assert (one["raw_loss"], one["raw_accuracy"]) == (other["loss"], other["accuracy"])
    ledgers = [json.loads((tmp_path / k / "privacy.json").read_text()) for k in "ab"]
    assert ledgers[0] == ledgers[1]


def test_which_rounds_are_held():
    tail = AveragingSettings("tail", start=0.7)
    assert tail.held(10) == [8, 9, 10]
    assert AveragingSettings("tail", start=0.1, end=0.3).held(10) == [2, 3]
    assert AveragingSettings("ema", start=0.5).held(5) == [3, 4, 5]
    assert AveragingSettings().held(5) == []


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["averaging=ema", "averaging.name=emma"], r"averaging\.name: 'emma' .*did you mean 'ema'"),
        (["averaging=ema", "averaging.decay=1"], r"averaging\.decay: 1.* equal weights are"),
        (["averaging=tail", "averaging.start=1"], r"averaging\.start"),
        (["averaging=tail", "averaging.end=0.5"], r"averaging\.end: 0\.5 .*above averaging\.start"),
        (["averaging=tail", "averaging.end=0.51", "rounds=3"], r"averaging\.end: .*a round of 3"),
    ],
)
def test_what_is_wrong_is_told_by_key(given, message, settings):
    with pytest.raises(InputError, match=message):
        settings(*given)


def test_factors_that_belong_to_others_are_not_averaged(settings):
    with pytest.raises(InputError, match=r"averaging\.name: 'ema' .*FedSa, whose clients keep B"):
        check_use(settings("strategy=fedsa", "averaging=ema"))
    check_use(settings("strategy=fedsa", "averaging=ema", "training.factors=A"))


def test_ends_that_are_parts_of_the_rounds_keep_their_number(inputs, tmp_path):
    constant = [*inputs, "training.schedule=constant", "privacy=none", "rounds=2"]
    run(tmp_path / "a", [*constant, "averaging=tail"])
    with pytest.raises(InputError, match=r"rounds: 3 .*averaging\.start and averaging\.end"):
        run(tmp_path / "a", [*constant, "averaging=tail"], "resume=auto", "rounds=3")
    run(tmp_path / "b", [*constant, "averaging=ema"])
    longer = run(tmp_path / "b", [*constant, "averaging=ema"], "resume=auto", "rounds=3")
    straight = run(tmp_path / "c", [*constant, "averaging=ema", "rounds=3"])
    assert longer["average_digest"] == straight["average_digest"]


def test_the_report_draws_the_average_and_the_last_model():
    from fedsvd.objectives.metric import ACCURACY
    from fedsvd.recorders.curves import metric_and_loss

    scored = [{"round": k, "accuracy": 0.5, "loss": 1.0, "raw_accuracy": 0.4} for k in range(3)]
    assert "last model" in metric_and_loss(scored, ACCURACY, None)["plots"][0]
    plain = [{k: v for k, v in m.items() if k != "raw_accuracy"} for m in scored]
    assert "last model" not in metric_and_loss(plain, ACCURACY, None)["plots"][0]
