"""Answers that a run generates: figures against a loop of its own and the exported model's."""

import json
import random

import numpy as np
import pytest
import torch
from transformers import AutoModelForCausalLM

import fedsvd
from fedsvd.client.evaluation import answer
from fedsvd.client.questions import asked
from fedsvd.client.worker import build_worker, get_worker
from fedsvd.errors import InputError
from fedsvd.objectives.answers import plain
from fedsvd.objectives.generation import continued, prompt_tokens, question
from fedsvd.objectives.metric import PERPLEXITY
from fedsvd.recorders.lines import ending
from fedsvd.recorders.tables import by_client
from fedsvd.recorders.view import PUBLIC
from tests.conftest import compose_settings
from tests.objectives.small import overrides, rows, tokenizer, write
from tests.tiny import run

MOST = 4  # tokens of an answer
OFF = ("recorder.answers=0",)


def speaking(folder):
    """Let a model say words alone: the logits of all other tokens are 0."""
    model, words = AutoModelForCausalLM.from_pretrained(folder).eval(), tokenizer()
    with torch.no_grad():
        for i, token in enumerate(words.convert_ids_to_tokens(range(320))):
            if token is None or not token.startswith("Ġ") or len(token) < 3:
                model.lm_head.weight[i] = 0
    model.save_pretrained(folder)
    return model


@pytest.fixture(scope="module")
def given(tmp_path_factory):
    """Return the overrides of a run, a third of whose rows its model answers, a third in part."""
    folder = tmp_path_factory.mktemp("given")
    told = overrides(folder, "qwen2", "data.client=who", "partition=natural", "privacy=none")
    model, found = speaking(folder / "qwen2"), rows(90)
    ids = prompt_tokens(tokenizer(), [row["prompt"] for row in found], False)
    for i, (row, said) in enumerate(
        zip(found, continued(model, tokenizer(), ids, MOST), strict=True)
    ):
        row["who"] = f"k{i % 4}"
        row["completion"] = (said, f"{said[: said.rindex(' ')]} nothing", " nothing")[i % 3]
    write(folder / "rows.jsonl", found)
    return [
        *told, "rounds=1", "clients.number=4", "data.test=0.3", "training.lr=0.1",
        "recorder.answers=12", f"recorder.answer_tokens={MOST}",
    ]  # fmt: skip


@pytest.fixture(scope="module")
def done(given, tmp_path_factory):
    folder = tmp_path_factory.mktemp("run") / "run"
    return folder, run(folder, given)


def questions_of(given, part):
    """Return the rows that are asked: prompt, completion and whose it is."""
    worker = get_worker(compose_settings(*given))
    found = asked(worker.settings, worker.task, worker.tokenizer, part)
    return [(*worker.task.texts[row], worker.task.owners[row]) for row in found]


def greedy(network, prompt):
    """Return the likeliest tokens after a prompt, each by a whole pass of its own."""
    words = tokenizer()
    ids = words(prompt)["input_ids"]
    before = len(ids)
    for _ in range(MOST):
        ids.append(int(network(input_ids=torch.tensor([ids])).logits[0, -1].argmax()))
    return words.decode(ids[before:], skip_special_tokens=True)


@pytest.mark.parametrize(("part", "prefix"), [("validation", ""), ("test", "test_")])
def test_figures_are_those_of_the_exported_model_and_of_a_plain_loop(given, done, part, prefix):
    folder, summary = done
    told, loaded = questions_of(given, part), fedsvd.load(done[0])
    found = loaded.answer([row[:2] for row in told], max_new_tokens=MOST)
    figures = [summary[f"{prefix}{name}"] for name in ("exact_match", "f1", "answered")]
    assert figures == [found.exact_match, found.f1, len(told)]
    assert 0 < found.exact_match < found.f1 < 1
    with torch.no_grad():
        said = [greedy(loaded.network, prompt) for prompt, _, _ in told]
    assert said == list(found.said)
    before = [(a, row[1]) for a, row in zip(said, told, strict=True) if "nothing" not in row[1]]
    if part == "validation":  # so that an answer of the model without its factors would show
        assert any(plain(a) != plain(first) for a, first in before)
    right = [plain(a) == plain(row[1]) for a, row in zip(said, told, strict=True)]
    assert figures[0] == pytest.approx(sum(right) / len(right))
    worker = get_worker(compose_settings(*given))
    assert len(told) < len(getattr(worker.task, part))
    lines = (folder / "metrics.jsonl").read_text().splitlines()
    first, last = map(json.loads, lines)
    assert "f1" not in first
    assert last["f1"] == summary["f1"]


def test_clients_have_figures_of_their_own_rows(given, done):
    summary = done[1]
    told, held = questions_of(given, "test"), summary["test_by_client"]
    sizes = {k: sum(owner == k for _, _, owner in told) for k in held}
    assert {k: one.get("answered", 0) for k, one in held.items()} == sizes
    for name in ("exact_match", "f1"):
        each = [held[k][name] for k, size in sizes.items() if size]
        assert len(set(each)) > 1
        mean = np.average(each, weights=[size for size in sizes.values() if size])
        assert mean == pytest.approx(summary[f"test_{name}"])
    shown = by_client({"test_by_client": {**held, "none": {"perplexity": 1e9, "loss": 1.0,
                                                          "examples": 1}}}, PERPLEXITY)  # fmt: skip
    assert shown["heads"] == ["token accuracy", "exact match", "F1"]
    assert shown["rows"][0]["more"] == ["-", "-", "-"]


def test_they_are_on_the_screen_the_card_and_the_report_and_may_be_shown(done):
    folder, summary = done
    figures = f"{summary['test_exact_match']:.4f}, {summary['test_f1']:.4f}"
    lines = ending(summary, folder)
    (line,) = [x for x in lines if x.startswith("test exact match, F1")]
    assert line.endswith(f"{figures} on {summary['test_answered']} answers")
    assert (
        f"test answers: exact match {summary['test_exact_match']:.4f}"
        in (folder / "adapter" / "README.md").read_text()
    )
    assert (
        f"<span>test F1, {summary['test_answered']} answers</span>"
        in (folder / "report.html").read_text()
    )
    assert {"exact_match", "f1", "answered"} <= PUBLIC


def test_nothing_else_of_a_run_moves_and_nothing_is_drawn(given, done, tmp_path):
    summary = done[1]
    off = run(tmp_path / "off", given, *OFF)
    more = {k for k in summary if k not in off}
    assert more == {f"{p}{k}" for p in ("", "test_") for k in ("exact_match", "f1", "answered")}
    for key in ("state_digest", "test_loss", "perplexity", "singular_values"):
        assert off[key] == summary[key]
    assert set(off["test_by_client"]["k0"]) == {"perplexity", "loss", "token_accuracy", "examples"}
    worker = get_worker(compose_settings(*given))
    before = torch.get_rng_state(), random.getstate()
    digest = worker.initial.digest()
    assert len(answer(worker, worker.initial, "test")) == summary["test_answered"]
    assert torch.equal(before[0], torch.get_rng_state())
    assert before[1] == random.getstate()
    assert worker.model.read(worker.initial).digest() == digest


def test_clients_models_answer_too(given, tmp_path):
    """With factors of their own clients answer, and the figures are their means."""
    summary = run(tmp_path / "run", given, "strategy=fedsa", "recorder.answers=null")
    worker = get_worker(compose_settings(*given))
    assert summary["answered"] == len(worker.task.validation)
    assert 0 < summary["test_exact_match"] < summary["test_f1"] < 1


def test_what_a_row_asks():
    told = [{"role": r, "content": c} for r, c in (("user", "a"), ("assistant", "b"))]
    assert question(("who", " Ann"), False) == ("who", " Ann")
    assert question(("who",), False) is None
    row = json.dumps([*told, *told, told[0]])
    assert question((row,), True) == ([*told, told[0]], "b")
    assert question((json.dumps(told[1:]),), True) is None


@pytest.mark.parametrize(
    ("kind", "more", "why"),
    [
        ("gpt2", "recorder.answer_tokens=127", r"recorder\.answer_tokens: 127 .* at most 12\d: "),
        ("gpt2", "recorder.answer_tokens=100", None),
        ("llama", "recorder.answer_tokens=127", None),  # it runs on more than it was made for
        (
            "gpt2",
            "data.text=[prompt]",
            r"recorder\.answers: None .* 0 with data\.text of one column",
        ),
    ],
)
def test_what_cannot_be_answered_is_refused_before_work(tmp_path, kind, more, why):
    settings = compose_settings(*overrides(tmp_path, kind, "recorder.answers=null", more))
    if why is None:
        assert build_worker(settings).settings is settings
        return
    with pytest.raises(InputError, match=why):
        build_worker(settings)


@pytest.mark.parametrize("task", ["classification", "choice"])
def test_only_causal_models_answer(task):
    with pytest.raises(InputError, match=rf"^recorder\.answers: 5 is .* 0 with task={task}: "):
        compose_settings(f"task={task}", "recorder.answers=5")
