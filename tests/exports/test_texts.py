"""What a loaded classifier takes to predict, and which base model it takes."""

import json
import os
import re
import shutil
import subprocess
import sys

import numpy as np
import pytest
import torch

from fedsvd.errors import InputError
from fedsvd.experiment import prepare
from fedsvd.exports.export import export
from fedsvd.exports.load import load
from fedsvd.exports.texts import rows_of
from fedsvd.strategies.build import build_strategy
from tests.conftest import compose_settings
from tests.models.saved import change_weights, save_model, save_words
from tests.tiny import WORDS

SUMMARY = {
    "model": "model", "head": "trained", "head_form": "linear",
    "task": "mine", "adapter": "lora", "strategy": "fedsvd",
    "rounds_completed": 0, "epsilon_max": None, "noise_source": "none",
}  # fmt: skip


def finished(folder, *overrides, model="model"):
    """A run folder with what a run of no rounds exports; `model` is a folder in `folder`."""
    if not (folder / "model").exists():
        save_model(folder / "model")
    words = [f"{WORDS[i % 12]} {WORDS[i % 7]} {WORDS[i % 5]}" for i in range(90)]
    lines = [f"{text},{text} film,{i % 2}" for i, text in enumerate(words)]
    (folder / "data.csv").write_text("\n".join(["text,more,label", *lines]))
    settings = compose_settings(
        "data=folder", f"data.path={folder / 'data.csv'}", "model=custom", f"model.name={model}",
        "adapter.rank=2", "model.head_init=random", "partition=iid", "partition.min_examples=1",
        "privacy=none", "training.precision=fp32", "device=cpu", *overrides,
    )  # fmt: skip
    run = prepare(settings, build_strategy(settings.strategy))
    run.worker.model.write(run.state)
    export(run.worker, run.state, folder / "run", SUMMARY)
    return folder / "run"


@pytest.fixture(scope="module")
def single(tmp_path_factory):
    folder = tmp_path_factory.mktemp("single")
    return load(finished(folder, model=folder / "model"))


@pytest.fixture(scope="module")
def pairs(tmp_path_factory):
    folder = tmp_path_factory.mktemp("pairs")
    return load(finished(folder, "data.text=[text,more]", model=folder / "model"))


def test_a_string_is_one_text_and_nothing_is_nothing(single, pairs):
    one = single.predict("a good film")
    assert one == single.predict(["a good film"])
    assert len(one) == 1
    assert single.logits("a good film").shape == (1, 2)
    for nothing in ([], (), np.array([]), iter([])):
        assert single.predict(nothing) == []
    assert single.logits([]).shape == (0, 2)
    many = ["good film", "bad"]
    expected = single.logits(many)
    for given in (tuple(many), np.array(many), iter(many), [(t,) for t in many]):
        assert torch.equal(single.logits(given), expected)
    assert pairs.logits(("good", "bad film")).shape == (1, 2)
    assert torch.equal(pairs.logits([("good", "bad film")]), pairs.logits([["good", "bad film"]]))
    assert pairs.predict([]) == []


SINGLE = [
    (None, "texts: NoneType is not allowed; it must be a text, or a list of texts"),
    (3, "texts: int is not allowed"),
    (b"good", "texts: bytes is not allowed"),
    ({"text": "good"}, "texts: dict is not allowed"),
    ({"good"}, "texts: set is not allowed"),
    (["good", None], "texts: number 2 is no text but of type NoneType"),
    (["good", 3], "texts: number 2 is no text but of type int"),
    (["good", float("nan")], "texts: number 2 is no text but of type float"),
    (["good", b"bad"], "texts: number 2 is no text but of type bytes"),
    ([["good", 1]], "texts: number 1 is no text but of type list"),
    (["good", ("good", "bad")], "texts: number 2 has 2 parts; this model takes a single text"),
    ([()], "texts: number 1 has 0 parts; this model takes a single text"),
    (["good", ""], "texts: number 2 is empty"),
    (["good", " \t\n"], "texts: number 2 is empty"),
    (["good", "\N{GRINNING FACE}"], "texts: number 2 gives no tokens with the model's tokeniser"),
    ("\N{GRINNING FACE}", "texts: number 1 gives no tokens"),
    (["good", "unheard words"], "texts: number 2 gives no tokens"),
    (["good", "film " * 40], "texts: number 2 gives 40 tokens; the model takes 32"),
]
PAIRS = [
    ("good", "texts: number 1 has 1 parts; this model takes a pair of texts"),
    (["good", "bad"], "texts: number 1 has 1 parts; this model takes a pair of texts"),
    ([("good", "bad"), ("good",)], "texts: number 2 has 1 parts; this model takes a pair"),
    ([("good", "bad", "film")], "texts: number 1 has 3 parts; this model takes a pair"),
    ([("good", "bad"), ("good", " ")], "texts: number 2 is empty"),
]


@pytest.mark.parametrize(
    ("model", "texts", "message"),
    [("single", *c) for c in SINGLE] + [("pairs", *c) for c in PAIRS],
    ids=lambda v: str(v)[:40],
)
def test_what_is_no_text_is_refused_by_number(model, texts, message, request):
    classifier = request.getfixturevalue(model)
    for call in (classifier.predict, classifier.logits):
        with pytest.raises(InputError, match=re.escape(message)) as caught:
            call(texts)
        assert "\n" not in str(caught.value)


def test_a_run_that_does_not_say_takes_either_but_not_both():
    assert rows_of(["a", "b"], None) == [("a",), ("b",)]
    assert rows_of([("a", "b")], None) == [("a", "b")]
    with pytest.raises(InputError, match="single texts or pairs, not both"):
        rows_of(["a", ("a", "b")], None)


def other_weights(folder):
    change_weights(folder, lambda w: {k: t + 0.1 for k, t in w.items()})


def other_words(folder):
    save_words(folder, words=WORDS[::-1])


def test_a_run_is_read_the_same_from_everywhere(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    run = finished(tmp_path, model="model")
    for file in ("classifier/classifier.json", "adapter/adapter_config.json"):
        told = json.loads((run / file).read_text())
        name = told.get("model", told.get("base_model_name_or_path"))
        assert name == str(tmp_path / "model")
    expected = load(run).logits("a good film")
    elsewhere = tmp_path / "elsewhere"
    other_weights(save_model(elsewhere / "model"))
    monkeypatch.chdir(elsewhere)
    assert torch.equal(load(run).logits("a good film"), expected)


@pytest.mark.parametrize(
    ("change", "what"), [(other_weights, "weights"), (other_words, "vocabulary")]
)
def test_another_base_model_is_refused(change, what, tmp_path):
    run = finished(tmp_path, model=tmp_path / "model")
    expected = load(run).logits("a good film")
    shutil.copytree(tmp_path / "model", tmp_path / "kept")
    change(tmp_path / "model")
    with pytest.raises(InputError, match=rf"the {what} of .*model' are not those that the run"):
        load(run)
    file = run / "classifier" / "classifier.json"
    told = json.loads(file.read_text())
    for key in ("weights", "vocabulary"):
        assert len(told.pop(key)) == 64
    file.write_text(json.dumps(told))
    assert not torch.equal(load(run).logits("a good film"), expected)  # as earlier versions did
    shutil.rmtree(tmp_path / "model")
    with pytest.raises(InputError, match=r"model' does not exist"):
        load(run)


AGAIN = """
import sys, pathlib
from tests.exports.test_texts import finished
folder = pathlib.Path(sys.argv[1])
finished(folder, "adapter.targets=[all]", model=folder / "model")
"""


def test_what_is_written_is_the_same_bytes_in_every_process(tmp_path):
    save_model(tmp_path / "model")
    found = []
    for seed in ("1", "2"):
        shutil.rmtree(tmp_path / "run", ignore_errors=True)
        done = subprocess.run(
            [sys.executable, "-c", AGAIN, str(tmp_path)], capture_output=True, text=True,
            check=False, env={**os.environ, "PYTHONHASHSEED": seed},
        )  # fmt: skip
        assert done.returncode == 0, done.stderr[-1000:]
        files = sorted(p for p in (tmp_path / "run").rglob("*") if p.is_file())
        found.append({str(p.relative_to(tmp_path)): p.read_bytes() for p in files})
    assert found[0] == found[1]
    assert "run/adapter/adapter_config.json" in found[0]
