"""Rows of a language model as tokens, and rows that cannot be used."""

import json
import math
import re

import pytest

from fedsvd.client.worker import build_worker, deal
from fedsvd.errors import InputError
from fedsvd.objectives.build import objective_of
from fedsvd.objectives.said import encode, rendered
from tests.conftest import compose_settings
from tests.objectives.small import WORDS, make_model, overrides, rows, tokenizer, write

TALK = [
    {"role": "user", "content": "red cat"}, {"role": "assistant", "content": "one dog"},
    {"role": "user", "content": "blue"}, {"role": "assistant", "content": "two"},
]  # fmt: skip


def said(table, row, words):
    """Return the counted tokens of a row as words."""
    ids = table.columns["input_ids"][row][table.counted[row]].tolist()
    return [words.decode([i]).strip() for i in ids]


def test_of_a_pair_the_completion_and_an_end_count():
    words = tokenizer()
    table = encode(words, [("red cat is", " a house"), ("one", " two")], False, 16, "m")
    assert said(table, 0, words) == ["a", "house", "</s>"]
    assert said(table, 1, words) == ["two", "</s>"]
    assert table.lengths.tolist() == [6, 3]
    assert (table.truncated, table.faults, table.empty) == (0, {}, [])


def test_of_a_plain_text_every_token_counts_and_none_is_added():
    words = tokenizer()
    table = encode(words, [("red cat is a house",)], False, 16, "m")
    assert said(table, 0, words) == ["red", "cat", "is", "a", "house"]


def test_of_a_conversation_the_turns_of_the_assistant_count():
    words = tokenizer()
    text, spans = rendered(words, TALK)
    assert [text[a:b].split() for a, b in spans] == [["one", "dog", "</s>"], ["two", "</s>"]]
    table = encode(words, [(json.dumps(TALK),)], True, 64, "m")
    assert [w for w in said(table, 0, words) if w] == ["one", "dog", "</s>", "two", "</s>"]
    follows = [*TALK, {"role": "user", "content": "green"}]
    assert rendered(words, follows) == (text, spans)  # nothing is learnt of what follows


def test_rows_are_cut_and_counted_and_those_without_anything_to_say_are_told():
    words = tokenizer()
    rows = [("red cat is", " a house"), ("red cat is a", " one two"), ("red", " one")]
    table = encode(words, rows, False, 4, "m")
    assert table.truncated == 2
    assert said(table, 0, words) == ["a"]
    assert list(table.faults) == table.empty == [1]
    assert "begins after 4 tokens, and model.max_length=4" in table.faults[1]
    single = encode(words, [("red",)], False, 4, "m")
    assert single.empty == [0]


def test_a_template_that_writes_earlier_turns_otherwise_is_told():
    words = tokenizer("{% for m in messages %}{{ loop.length }}{{ m['content'] }}{% endfor %}")
    table = encode(words, [(json.dumps(TALK),)], True, 64, "m")
    assert "earlier turns in another way" in table.faults[0]


BAD = {
    "no assistant": ([{"role": "user", "content": "red"}], "no message has the role 'assistant'"),
    "odd role": ([{"role": "system", "content": "red"}, *TALK], "only user and assistant roles"),
    "no content": ([{"role": "user"}, *TALK], "message 1 has no content but None"),
    "no list": ("red cat", "holds no messages but 'red cat'"),
    "empty": ([], "holds no messages but []"),
    "null": (None, "holds no messages but None"),
    "texts": (["red", "cat"], "message 1 has no role but None"),
    "blank content": (
        [{"role": "user", "content": " "}, *TALK],
        "message 1 has no content but ' '",
    ),
    "parts": ([{"role": "user", "content": [{"text": "red"}]}, *TALK], "message 1 has no content"),
    "broken JSON": ('[{"role": "user"', "holds no messages but"),
}


@pytest.mark.parametrize("name", list(BAD))
def test_a_conversation_that_cannot_be_used_is_told_with_file_and_line(tmp_path, name):
    messages, why = BAD[name]
    given = overrides(tmp_path, "llama", "data.messages=messages")
    talks = [{"messages": [{"role": "user", "content": f"{w} cat"}, *TALK[1:]]}
             for w in ("one", "two", "three", "a", "is", "tree", "red")]  # fmt: skip
    path = write(tmp_path / "rows.jsonl", [*talks, {"messages": messages}])
    with pytest.raises(InputError, match=re.escape(why)) as told:
        build_worker(compose_settings(*given))
    assert str(told.value).startswith(f"{path}: line 8: ")
    assert "\n" not in str(told.value)


@pytest.mark.parametrize(
    ("row", "more", "why"),
    [
        ({"prompt": "red", "completion": " "}, (), "column 'completion' holds no text but ' '"),
        ({"prompt": "red", "completion": None}, (), "column 'completion' holds no text but None"),
        ({"prompt": "red", "completion": math.nan}, (), "holds no text but nan"),
        ({"prompt": "red", "completion": [" one"]}, (), "holds no text but [' one']"),
        ({"prompt": "red"}, (), "no 'completion' (data.text)"),
        ({"messages": TALK}, (), "no 'prompt' (data.text)"),
        ({"prompt": "red", "completion": " \ud800"}, (), "holds half a character"),
        ({"prompt": "red " * 300000, "completion": " one"}, (), "is longer than"),
        ({"prompt": "red " * 9, "completion": " one"}, ("model.max_length=6",), "cuts it off"),
    ],
)
def test_a_completion_that_cannot_be_used_is_told_with_file_and_line(tmp_path, row, more, why):
    given = overrides(tmp_path, "llama", *more)
    path = write(tmp_path / "rows.jsonl", [{"prompt": "red", "completion": f" {w}"} for w in
                                           ("one", "two", "three", "a", "cat")] + [row])  # fmt: skip
    with pytest.raises(InputError, match=re.escape(why)) as told:
        build_worker(compose_settings(*given))
    assert str(told.value).startswith(f"{path}: line 6")
    assert "\n" not in str(told.value)


def test_a_tokeniser_without_a_template_is_refused(tmp_path):
    model = make_model(tmp_path / "plain", template=None)
    given = overrides(tmp_path, "llama", "data.messages=messages", f"model.name={model}")
    talks = [[{"role": "user", "content": w}, TALK[1]] for w in WORDS * 2]
    write(tmp_path / "rows.jsonl", [{"messages": [*t, *t[: i // 12]]} for i, t in enumerate(talks)])
    with pytest.raises(InputError, match=r"rows\.jsonl: line 1: .* no chat template"):
        build_worker(compose_settings(*given))


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("attack=label_flip", "attack.clients=[0]"), "attack: 'label_flip'"),
        (("adapter=lora_ga", "data.label_texts=[[a],[b]]"), r"data\.label_texts: \[\['a'\]"),
        (("adapter=lora_ga",), r"data\.public: 0 is not allowed"),
        (
            ("task=choise",),
            r"task: 'choise' is not allowed.*choose from causal, choice, classification",
        ),
        (("task=classification", "data.messages=messages"), r"data\.messages: 'messages'"),
        (("data.text=[question,completion]",), r"no column 'question' \(data\.text\)"),
    ],
)
def test_settings_that_do_not_fit_are_refused(tmp_path, more, why):
    with pytest.raises(InputError, match=why):
        build_worker(compose_settings(*overrides(tmp_path, "llama", *more)))


DEALT = {
    "iid": (), "quantity": (), "dirichlet": (),
    "dirichlet by a column": ("partition.column=who",),
    "natural": ("partition.column=who", "partition.ids=[k0,k1,k2]"),
    "files": ("partition.ids=[k0,k1,k2]",),
    "flower": ("partition._target_=flwr_datasets.partitioner.IidPartitioner",),
    "flower by a column": (
        "partition._target_=flwr_datasets.partitioner.NaturalIdPartitioner", "partition.column=who",
    ),
}  # fmt: skip
REFUSED = {
    "shards": r"^partition: 'shards' is not allowed; it must be iid, .* rows have no labels",
    "published": r"^partition: 'published' is not allowed; it must be iid, ",
    "own": r"^partition: 'own' is not allowed; it must be another one with task=causal",
    "flower": r"^partition\.column: None is not allowed; it must be a column .*DirichletPartitioner",
}


def owned(folder):
    """Return the overrides of rows that a column says the owner of, and a folder of files of each."""
    given = overrides(folder, "llama", "partition.min_examples=0")
    found = [{**row, "who": f"k{i % 3}"} for i, row in enumerate(rows(90))]
    write(folder / "rows.jsonl", found)
    (folder / "each").mkdir()
    for k in range(3):
        write(folder / "each" / f"k{k}.jsonl", found[k::3])
    return given


@pytest.mark.parametrize("name", list(DEALT))
def test_rows_without_labels_are_dealt(tmp_path, name):
    if name.startswith("flower"):
        pytest.importorskip("flwr_datasets", reason="needs the optional package flwr-datasets")
    given = [o for o in owned(tmp_path) if o != "partition=iid"]
    path = [f"data.path={tmp_path / 'each'}"] if name == "files" else []
    task, parts = deal(
        compose_settings(*given, f"partition={name.split()[0]}", *DEALT[name], *path)
    )
    assert sorted(row for part in parts for row in part.tolist()) == task.train.tolist()
    assert sum(len(part) > 0 for part in parts) > 1
    if name in ("natural", "files"):
        assert [{task.owners[row] for row in part} for part in parts] == [{"k0"}, {"k1"}, {"k2"}]


@pytest.mark.parametrize("name", list(REFUSED))
def test_partitions_that_need_labels_are_refused(tmp_path, name):
    if name == "flower":
        pytest.importorskip("flwr_datasets", reason="needs the optional package flwr-datasets")
    given = [o for o in owned(tmp_path) if not o.startswith(("partition=", "clients.number="))]
    more = {
        "published": ["clients.number=6"],
        "own": ["privacy.secure_noise=true", "privacy.diagnostics=false"],
    }.get(name, [])

    def ask():
        settings = compose_settings(*given, f"partition={name}", "partition.min_examples=0", *more)
        objective_of("causal").check(settings)
        deal(settings)

    with pytest.raises(InputError, match=REFUSED[name]) as told:
        ask()
    assert "\n" not in str(told.value)
