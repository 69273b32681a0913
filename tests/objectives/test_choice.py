"""Choice among endings: scores against a loop of Transformers, whole runs, rows that are refused."""

import json
import math
import re

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import fedsvd
from fedsvd.client.evaluation import evaluate_part
from fedsvd.client.worker import build_worker
from fedsvd.errors import InputError
from tests.conftest import compose_settings
from tests.objectives.small import WORDS, overrides, tokenizer, write
from tests.tiny import outcome, run


def questions(number=60):
    """Return contexts with three endings of unequal lengths, no two alike."""
    generator = torch.Generator().manual_seed(7)
    found = []
    for i in range(number):
        drawn = [WORDS[d] for d in torch.randint(len(WORDS), (12,), generator=generator).tolist()]
        endings = [" ".join(drawn[a:b]) for a, b in ((4, 6), (6, 9), (9, 10 + i % 3))]
        found.append({"context": " ".join(drawn[: 3 + i % 2]), "endings": endings, "label": i % 3})
    return found


def given(folder, *more):
    base = [o for o in overrides(folder) if not o.startswith(("task", "data.text"))]
    write(folder / "rows.jsonl", questions())
    return [
        *base, "task=choice", "data.text=[context]", "data.endings=endings", "data.label=label",
        "data.labels=[0,1,2]", *more,
    ]  # fmt: skip


def means(network, words, context, endings):
    """Return the mean of -log p of each ending's tokens, by Transformers and a loop alone."""
    found = []
    with torch.no_grad():
        for ending in endings:
            before = len(words(context)["input_ids"])
            ids = words(f"{context} {ending}", return_tensors="pt")["input_ids"]
            logits = network(input_ids=ids).logits[0].log_softmax(dim=1)
            places = range(before, ids.shape[1])
            found.append(-sum(float(logits[t - 1, ids[0, t]]) for t in places) / len(places))
    return found


def test_scores_and_losses_are_those_of_a_plain_loop(tmp_path):
    worker = build_worker(compose_settings(*given(tmp_path)))
    found = worker.evaluate(worker.initial, worker.task.validation)
    network, words = AutoModelForCausalLM.from_pretrained(tmp_path / "llama").eval(), tokenizer()
    rows = {row["context"] + row["endings"][0]: row for row in questions()}
    right, losses = [], []
    for row in worker.task.validation.tolist():
        context, endings = worker.task.texts[row]
        told = rows[context + json.loads(endings)[0]]
        each = means(network, words, context, told["endings"])
        right.append(min(range(3), key=each.__getitem__) == told["label"])
        losses.append(each[told["label"]])
    assert 0 < sum(right) < len(right)
    assert found["accuracy"] == pytest.approx(sum(right) / len(right))
    assert found["loss"] == pytest.approx(sum(losses) / len(losses), rel=1e-5)
    trained = worker.losses(worker.task.validation.tolist()).tolist()
    assert trained == pytest.approx(losses, rel=1e-5)
    assert not math.isclose(math.exp(found["loss"]), found["perplexity"], rel_tol=1e-4)


@pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")  # Ray's
def test_straight_and_resumed_end_in_the_same_bits(tmp_path):  # and Ray's: see test_causal.py
    told = given(tmp_path, "rounds=3", "training.schedule=constant", "privacy.secure_noise=false")
    summary = run(tmp_path / "straight", told)
    run(tmp_path / "resumed", told, "rounds=2", "privacy=none")
    run(tmp_path / "whole", told, "privacy=none")
    run(tmp_path / "resumed", told, "privacy=none", "resume=auto")
    whole, resumed = outcome(tmp_path / "whole"), outcome(tmp_path / "resumed")
    assert whole[0] == resumed[0] != outcome(tmp_path / "straight")[0]
    keys = ("accuracy", "loss", "perplexity", "best_accuracy", "test_accuracy")
    assert [whole[3][k] for k in keys] == [resumed[3][k] for k in keys]
    assert summary["gradients"] == "hooks"
    loaded = fedsvd.load(tmp_path / "straight")
    worker = build_worker(compose_settings(*told))
    test = [worker.task.texts[row] for row in worker.task.test.tolist()]
    chosen = loaded.choose([(context, json.loads(endings)) for context, endings in test])
    labels = worker.task.labels[worker.task.test].tolist()
    right = sum(a == b for a, b in zip(chosen, labels, strict=True))
    assert right / len(labels) == pytest.approx(summary["test_accuracy"])


def test_clients_have_figures_of_their_own_rows(tmp_path):
    told = given(tmp_path, "data.client=who", "partition=natural", "privacy=none", "data.test=0.3")
    write(
        tmp_path / "rows.jsonl", [{**q, "who": f"k{i % 7 % 3}"} for i, q in enumerate(questions())]
    )
    worker, owners = build_worker(compose_settings(*told)), {}
    whole = evaluate_part(worker, worker.initial, "test", owners)
    assert set(owners) == {"k0", "k1", "k2"}
    assert len({one["accuracy"] for one in owners.values()}) > 1
    for owner, own in owners.items():
        rows = [row for row in worker.task.test if worker.task.owners[row] == owner]
        assert own == {**worker.evaluate(worker.initial, np.array(rows)), "examples": len(rows)}
    assert sum(own["examples"] for own in owners.values()) == whole["examples"]


GOOD = questions(1)[0]
BAD = {
    "fewer": ({**GOOD, "endings": ["red", "a cat"]}, "holds 2 endings, "),
    "one": ({**GOOD, "endings": ["red"]}, "holds 1 endings; at least 2"),
    "empty": ({**GOOD, "endings": ["red", " ", "cat"]}, "ending 1 is no text but ' '"),
    "text": ({**GOOD, "endings": "red"}, "holds no list of endings but 'red'"),
    "label": ({**GOOD, "label": 3}, "label '3' is not one of 0, 1, 2"),
    "negative": ({**GOOD, "label": -1}, "label '-1' is not one of 0, 1, 2"),
    "part": ({**GOOD, "label": 1.5}, "holds no label but 1.5"),
    "ending": ({**GOOD, "label": GOOD["endings"][1]}, "is not one of 0, 1, 2"),
    "mapping": ({**GOOD, "endings": {"a": 1, "b": 2}}, "holds no list of endings but {'a'"),
    "number": ({**GOOD, "endings": ["red", 2, "cat"]}, "ending 1 is no text but 2"),
    "none": ({**GOOD, "label": None}, "the label is missing"),
    "context": ({**GOOD, "context": ""}, "column 'context' holds no text"),
    "long": ({**GOOD, "context": "red " * 40}, "ending 0: what is to be said begins after 4"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_row_that_cannot_be_used_is_told_with_file_and_line(tmp_path, name):
    row, why = BAD[name]
    declared = "data.labels=null" if name == "fewer" else "data.labels=[0,1,2]"
    told = given(tmp_path, "model.max_length=24", "privacy=none", declared)
    path = write(tmp_path / "rows.jsonl", [*questions(30), row])
    with pytest.raises(InputError, match=re.escape(why)) as error:
        build_worker(compose_settings(*told))
    assert str(error.value).startswith(f"{path}: line 31: ")
    assert "\n" not in str(error.value)
    if name == "fewer":
        assert f"{path}: line 1 has 3" in str(error.value)


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("data.endings=null",), r"data\.endings: None"),
        (("data.endings=ending",), r"no column 'ending' \(data\.endings\)"),
        (("data.text=[context,label]",), r"data\.text: \['context', 'label'\]"),
        (("data.labels=[0,1]",), r"holds 3 endings, data\.labels has 2"),
        (("data.labels=null",), r"data\.labels: needed"),
        (("attack=label_flip", "attack.clients=[0]"), "attack: 'label_flip'"),
        (("task=causal",), r"data\.endings: 'endings' is not allowed; it must be used with task=c"),
        (("task=classification",), r"data\.endings: 'endings'"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, more, why):
    with pytest.raises(InputError, match=why):
        build_worker(compose_settings(*given(tmp_path, *more)))


def test_the_published_setting_and_instruction_tuning_compose():
    found = compose_settings("+experiment=paper/hellaswag")
    assert (found.task, found.model.name) == ("choice", "HuggingFaceTB/SmolLM-360M")
    assert (found.partition.name, found.partition.column) == ("dirichlet", "activity_label")
    assert (found.training.optimizer, found.privacy.epsilon, found.clients.number) == (
        "adamw",
        6,
        6,
    )
    assert found.data.labels == ("0", "1", "2", "3")
    found = compose_settings("+experiment=llm/instruct", "model.name=m", "data.path=d")
    assert (found.data.messages, found.training.gradient_checkpointing) == ("messages", True)
    assert (found.model.dtype, found.model.attention) == ("bfloat16", "auto")
