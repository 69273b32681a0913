"""Which rows a run's figures are on: a fixed subset while it goes, all of validation at its end."""

import json
import shutil

import numpy as np
import pytest
import torch

from fedsvd.checkpoints.checkpoint import read_whole
from fedsvd.client.worker import get_worker
from fedsvd.config import from_config
from fedsvd.objectives.metric import ACCURACY, PERPLEXITY
from fedsvd.rounds.evaluation import score
from tests.tiny import make_inputs, outcome, run

MORE = ["recorder.evaluate_examples=5", "recorder.evaluate_every=1", "recorder.keep=9"]


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    made = make_inputs(tmp_path_factory.mktemp("inputs"))
    return [*made, *MORE, "data.validation=0.3", "privacy=none", "training.lr=20"]


@pytest.fixture(scope="module")
def done(inputs, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "all"
    return folder, run(folder, inputs)


def lines(folder):
    return [json.loads(x) for x in (folder / "metrics.jsonl").read_text().splitlines()]


def worker_of(folder):
    from omegaconf import OmegaConf

    config = OmegaConf.to_container(OmegaConf.load(folder / "config.yaml"))
    config.pop("resume", None)
    return get_worker(from_config(config))


def by_hand(worker, state, rows):
    """Return accuracy and loss, each row alone and in float64."""
    worker.model.write(state)
    right, losses = [], []
    for row in rows:
        batch = worker.tokens.batch([int(row)])
        with torch.no_grad():
            logits = worker.model(batch.inputs)[0].double()
        label = int(worker.task.labels[row])
        right.append(int(logits.argmax()) == label)
        losses.append(float(torch.logsumexp(logits, 0) - logits[label]))
    return np.mean(right), np.mean(losses)


def test_rounds_are_on_the_subset_and_the_last_one_on_all(done):
    folder, summary = done
    worker, held = worker_of(folder), lines(folder)
    rows, subset = worker.task.validation, worker.subset
    assert set(subset) < set(rows)
    assert len(subset) > 1
    states = [read_whole(p).state for p in sorted((folder / "checkpoints").glob("round-*"))]
    assert len({read.digest() for read in states}) == len(held) == 5
    for line, state in zip(held, states, strict=True):
        last = line["round"] == 4
        on = rows if last else subset
        assert line["examples"] == len(on)
        found = (line["accuracy"], line["loss"])
        assert found == pytest.approx(by_hand(worker, state, on), rel=1e-5)
        assert ("subset_accuracy" in line) == last
    its = (held[-1]["subset_accuracy"], held[-1]["subset_loss"])
    assert its == pytest.approx(by_hand(worker, states[-1], subset), rel=1e-5)
    assert held[-1]["subset_examples"] == len(subset)
    assert (summary["accuracy"], summary["examples"]) == (held[-1]["accuracy"], len(rows))
    assert summary["test_examples"] == len(worker.task.test)
    test = by_hand(worker, states[-1], worker.task.test)
    assert (summary["test_accuracy"], summary["test_loss"]) == pytest.approx(test, rel=1e-5)


def test_rounds_are_compared_on_the_same_rows(done):
    folder, summary = done
    held = lines(folder)
    scores = [line.get("subset_accuracy", line["accuracy"]) for line in held]
    assert held[-1]["accuracy"] != scores[-1]  # so that the other choice would show
    best = int(np.argmax(scores))
    assert (summary["best_accuracy"], summary["best_round"]) == (max(scores), best)
    assert summary["best_examples"] == held[-1]["subset_examples"]
    assert read_whole(folder / "checkpoints" / "best.safetensors").state.round == best


def test_the_score_of_a_round_is_that_of_the_subset():
    last = {"accuracy": 0.9, "subset_accuracy": 0.5}
    assert score(ACCURACY, last) == 0.5  # after the last round
    assert score(ACCURACY, {"accuracy": 0.6}) == 0.6
    assert score(ACCURACY, {"round": 3}) is None
    assert score(PERPLEXITY, {"perplexity": 9.0}) < score(PERPLEXITY, {"perplexity": 8.0})


def test_the_time_of_evaluation_is_told(done):
    folder, summary = done
    taken = sum(line["evaluate_seconds"] for line in lines(folder))
    assert 0 < taken < summary["seconds_evaluating"] < summary["seconds"]
    assert summary["seconds_training"] == sum(x.get("train_seconds", 0) for x in lines(folder))


def test_the_rows_are_the_same_after_a_resume(done, inputs, tmp_path):
    folder, _ = done
    again = tmp_path / "again"
    shutil.copytree(folder, again)
    (again / "summary.json").unlink()
    for number in (3, 4):
        (again / "checkpoints" / f"round-{number:06d}.safetensors").unlink()
    run(again, inputs, "resume=auto")
    assert outcome(again) == outcome(folder)


def test_without_a_number_every_figure_is_on_all(inputs, tmp_path):
    run(tmp_path / "run", inputs, "recorder.evaluate_examples=null")
    sizes = {line["examples"] for line in lines(tmp_path / "run")}
    assert sizes == {len(worker_of(tmp_path / "run").task.validation)}
    assert not any("subset_accuracy" in line for line in lines(tmp_path / "run"))


def test_clients_models_are_evaluated_on_the_same_rows(inputs, tmp_path):
    """With factors of their own clients evaluate, and the figures are their means."""
    run(tmp_path / "run", inputs, "strategy=fedsa", "rounds=2")
    held, worker = lines(tmp_path / "run"), worker_of(tmp_path / "run")
    whole, part = len(worker.task.validation), len(worker.subset)
    assert [line["examples"] for line in held] == [part, part, whole]
    assert held[-1]["subset_examples"] == part < whole
    assert not any("num-examples" in line for line in held)


def test_averages_and_last_models_are_on_the_same_rows(inputs, tmp_path):
    run(tmp_path / "run", inputs, "averaging=ema", "rounds=2")
    worker, held = worker_of(tmp_path / "run"), lines(tmp_path / "run")
    for line, rows in zip(held[1:], (worker.subset, worker.task.validation), strict=True):
        path = tmp_path / "run" / "checkpoints" / f"round-{line['round']:06d}.safetensors"
        found = by_hand(worker, read_whole(path).state, rows)
        assert (line["raw_accuracy"], line["raw_loss"]) == pytest.approx(found, rel=1e-5)
