"""One check of rows: the same rows in every format are read, or refused, in the same words."""

import gzip
import json
import math
import re
from dataclasses import replace

import pandas as pd
import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from fedsvd.data.task import load_task
from fedsvd.errors import InputError
from fedsvd.settings import DataSettings

GOOD = [{"text": f"text {i} é", "label": i % 2, "lang": "de" if i % 3 else "en", "key": f"k{i}"}
        for i in range(60)]  # fmt: skip


def write(folder, form, rows):
    """Write rows in a format and return the path that data.path takes."""
    path = folder / f"rows.{form}"
    frame = pd.DataFrame(rows)
    lines = "\n".join(json.dumps(r) for r in rows) + "\n"
    if form in ("csv", "tsv", "CSV"):
        frame.to_csv(path, index=False, sep="\t" if form == "tsv" else ",")
    elif form == "csv.gz":
        frame.to_csv(path, index=False, compression="gzip")
    elif form in ("jsonl", "ndjson", "JSONL"):
        path.write_text(lines)
    elif form == "jsonl.gz":
        path.write_bytes(gzip.compress(lines.encode()))
    elif form == "json":
        path.write_text(json.dumps(rows, indent=1))
    elif form == "json.gz":
        path.write_bytes(gzip.compress(json.dumps(rows).encode()))
    elif form == "parquet":
        frame.to_parquet(path)
    elif form == "hf.parquet":
        Dataset.from_list(rows).to_parquet(path)
    elif form == "saved":
        Dataset.from_list(rows).save_to_disk(path)
    elif form == "arrow":
        Dataset.from_list(rows).save_to_disk(folder / "whole")
        return str(next((folder / "whole").glob("*.arrow")))
    return str(path)


TEXT = ("csv", "tsv", "CSV", "csv.gz", "jsonl", "ndjson", "JSONL", "jsonl.gz")
TYPED = ("json", "json.gz", "parquet", "hf.parquet", "saved", "arrow")


def load(path, **options):
    return load_task(DataSettings("mine", path=path, **options), 0)


@pytest.mark.parametrize("form", [*TEXT, *TYPED])
def test_every_format_gives_the_same_task(form, tmp_path):
    task = load(write(tmp_path, form, GOOD), filter={"lang": "de"}, id="key")
    expected = [(r["text"], r["label"]) for r in GOOD if r["lang"] == "de"]
    assert [(t[0], y) for t, y in zip(task.texts, task.labels.tolist(), strict=True)] == expected


@pytest.mark.parametrize("form", [*TEXT, *TYPED])
def test_ids_are_compared_in_every_format(form, tmp_path):
    rows = [*GOOD, {**GOOD[3], "text": "other"}]
    with pytest.raises(InputError, match=r"(line|row) \d+: its id 'k3' is that of .*(line|row) \d"):
        load(write(tmp_path, form, rows), id="key")


BAD = [
    ("label", None, "column 'label' holds no label but None; the label is missing"),
    ("label", [0, 1], "holds no label but [0, 1]; a row has one label"),
    ("label", {"a": 1}, "holds no label but {'a': 1}; a row has one label"),
    (
        "label",
        2.5,
        "holds no label but 2.5; a label is a name or a whole number, regression is not",
    ),
    ("label", "", "holds no label but ''; the label is missing"),
    ("label", "  ", "holds no label but '  '; the label is missing"),
    ("text", None, "column 'text' holds no text but None"),
    ("text", " \n", "column 'text' holds no text but ' \\n'"),
    ("text", 7, "column 'text' holds no text but 7"),
    ("text", ["a"], "column 'text' holds no text but ['a']"),
    ("key", None, "column 'key' holds no id but None (data.id)"),
    ("key", "", "column 'key' holds no id but '' (data.id)"),
]


@pytest.mark.parametrize("form", ["json", "jsonl", "saved", "parquet"])
@pytest.mark.parametrize(("column", "value", "message"), BAD, ids=lambda v: str(v)[:30])
def test_a_row_that_is_none(column, value, message, form, tmp_path):
    def typed(held):  # columns of one type, as Arrow has them
        if isinstance(value, (list, dict, float)):
            return type(value)([held]) if isinstance(value, list) else value
        return str(held) if isinstance(value, str) else held

    if form in ("saved", "parquet"):
        if column == "text" and not isinstance(value, (str, type(None))):
            rows = [{**r, "text": value} for r in GOOD]
            number = 1
        elif isinstance(value, (list, dict)):
            rows, number = [{**r, "label": value} for r in GOOD], 1
        else:
            rows = [{**r, column: typed(r[column])} for r in GOOD]
            rows[4] = {**rows[4], column: value}
            number = 1 if isinstance(value, float) else 5
    else:
        rows, number = [dict(r) for r in GOOD], 5
        rows[4][column] = value
    unit = "line" if form == "jsonl" else "row"
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load(write(tmp_path, form, rows), id="key")
    assert f"{unit} {number}: column {column!r}" in str(caught.value)
    assert "\n" not in str(caught.value)


def test_missing_labels_of_pandas(tmp_path):
    """One missing label makes floats of all; without it they are whole numbers again."""
    frame = pd.DataFrame(GOOD)
    frame["label"] = frame["label"].astype("float64")
    for name, save in (("a.parquet", frame.to_parquet), ("a.csv", frame.to_csv)):
        save(tmp_path / name)
        task = load(str(tmp_path / name), labels=("neg", "pos"))
        assert task.labels.tolist() == [r["label"] for r in GOOD]
        assert load(str(tmp_path / name)).label_names == ("0", "1")
    frame.loc[4, "label"] = math.nan
    frame.to_parquet(tmp_path / "a.parquet")
    with pytest.raises(
        InputError, match=r"row 5: column 'label' holds no label but (nan|None); the l"
    ):
        load(str(tmp_path / "a.parquet"))
    frame.to_csv(tmp_path / "a.csv")
    with pytest.raises(
        InputError, match=r"line 6: column 'label' holds no label but ''; the label"
    ):
        load(str(tmp_path / "a.csv"))


def test_numbers_with_a_point_are_labels_where_they_are_declared(tmp_path):
    rows = [{**r, "label": (1.0, 1.5)[i % 2]} for i, r in enumerate(GOOD)]
    for form in ("csv", "jsonl", "parquet"):
        task = load(write(tmp_path, form, rows), labels=("1.0", "1.5"))
        assert task.labels.tolist() == [i % 2 for i in range(60)]


def test_booleans_are_names(tmp_path):
    rows = [{**r, "label": i % 2 == 0} for i, r in enumerate(GOOD)]
    for form in ("csv", "jsonl", "parquet", "saved"):
        path = write(tmp_path, form, rows)
        assert load(path).label_names == ("False", "True")
        assert load(path, labels=("true", "false")).labels.tolist() == [i % 2 for i in range(60)]
        with pytest.raises(InputError, match="label 'True' is not one of no, yes"):
            load(path, labels=("no", "yes"))


FOUND = [
    (["neg", "neg "], "line 3: column 'label' holds 'neg ', which differs from 'neg'"),
    (["Neg", "neg"], "which differs from 'Neg'"),
    (["very  good", "very good"], "by blanks, case or writing alone"),
    (["01", "1"], "by blanks, case or writing alone"),
    (["cafe\u0301", "caf\u00e9"], "by blanks, case or writing alone"),
    ([" a", "b"], "line 2: column 'label' holds ' a', with blanks at its ends"),
    (["0.5", "3"], "line 2: column 'label' holds numbers, as 0.5; regression is not supported"),
    (["nan", "a"], "line 2: column 'label' holds 'nan', a missing label"),
]  # fmt: skip


@pytest.mark.parametrize(("labels", "message"), FOUND, ids=lambda v: str(v)[:30])
def test_labels_that_are_found_must_be_told_apart(labels, message, tmp_path):
    rows = [{"text": f"text {i}", "label": labels[i % 2]} for i in range(40)]
    path = write(tmp_path, "csv", rows)
    with pytest.raises(InputError, match=re.escape(message)):
        load(path)
    if all(y == y.strip() for y in labels):  # whoever means it says so
        assert load(path, labels=tuple(labels)).label_names == tuple(labels)


@pytest.mark.parametrize("labels", [("²", "³"), ("--1", "1"), ("[neg]", "[/neg]"), ("плохо", "x")])
def test_odd_labels_are_names(labels, tmp_path):
    rows = [{"text": f"text {i}", "label": labels[i % 2]} for i in range(40)]
    for given in (None, labels):
        assert set(load(write(tmp_path, "csv", rows), labels=given).label_names) == set(labels)


def test_a_label_off_by_case_or_blanks_is_named(tmp_path):
    rows = [{"text": f"text {i}", "label": ("neg", "Pos ")[i % 2]} for i in range(40)]
    with pytest.raises(
        InputError, match=r"line 3: label 'Pos ' is not one of neg, pos \(did you mean 'pos'\?"
    ):
        load(write(tmp_path, "csv", rows), labels=("neg", "pos"))


def test_half_a_character(tmp_path):
    (tmp_path / "a.jsonl").write_text(
        '{"text": "a", "label": 0}\n{"text": "\\ud83d", "label": 1}\n'
    )
    with pytest.raises(
        InputError, match=r"line 2: column 'text' holds half a character, '\\ud83d'"
    ):
        load(str(tmp_path / "a.jsonl"))


def hub(monkeypatch, rows, **more):
    """Let the hub's client find a data set here: no test has a network."""
    found = DatasetDict({"train": Dataset.from_list(rows), **more})
    monkeypatch.setattr("datasets.load_dataset", lambda name, config: found)


def test_data_of_the_hub_obeys_filter_and_id(monkeypatch):
    hub(monkeypatch, GOOD)
    task = load("lab/set", filter={"lang": "de"}, id="key")
    assert len(task.texts) == sum(r["lang"] == "de" for r in GOOD)
    assert task.source == "hub: lab/set"
    with pytest.raises(
        InputError, match=r"hub: lab/set: train: row 6: its id .de. is that of .* row 2"
    ):
        load("lab/set", id="lang", filter={"label": "1"})
    with pytest.raises(InputError, match=r"no column 'lnag' \(data.filter\) \(did you mean 'lang'"):
        load("lab/set", filter={"lnag": "de"})
    with pytest.raises(InputError, match=r"no rows after data\.filter"):
        load("lab/set", filter={"lang": "fr"})


def test_rows_of_snli_without_a_gold_label_are_left_out(monkeypatch, settings):
    names = ["entailment", "neutral", "contradiction"]
    features = Features(
        {
            "premise": Value("string"),
            "hypothesis": Value("string"),
            "label": ClassLabel(names=names),
        }
    )
    parts = {
        part: Dataset.from_list(
            [{"premise": part, "hypothesis": f"h {i}", "label": i % 4 - 1} for i in range(40)],
            features=features,
        )
        for part in ("train", "validation", "test")
    }
    monkeypatch.setattr("datasets.load_dataset", lambda name, config: DatasetDict(parts))
    given = settings("data=snli").data
    task = load_task(given, 0, private=True)
    assert (given.hub, task.label_names) == ("stanfordnlp/snli", tuple(names))
    assert [len(p) for p in (task.train, task.validation, task.test)] == [30, 30, 30]
    assert sorted(set(task.labels.tolist())) == [0, 1, 2]
    with pytest.raises(InputError, match="-1 stands for no label"):
        load_task(replace(given, filter=None), 0)


def test_data_of_the_hub_is_checked(monkeypatch):
    hub(monkeypatch, [*GOOD, {**GOOD[0], "text": None}])
    with pytest.raises(
        InputError, match=r"hub: lab/set: train: row 61: column 'text' holds no text"
    ):
        load("lab/set")
    shuffled = DatasetDict(train=Dataset.from_list(GOOD).shuffle(seed=3).select(range(50)))
    hub(monkeypatch, GOOD, **shuffled)
    task = load("lab/set")
    assert [t[0] for t in task.texts] == list(shuffled["train"]["text"])


def test_rows_of_the_hub_without_a_label(monkeypatch):
    """The test parts of GLUE: every label is -1."""
    data = Dataset.from_list(GOOD).class_encode_column("label")
    blind = data.map(lambda row: {"label": -1})
    hub(monkeypatch, GOOD, train=data, test=blind)
    with pytest.raises(InputError, match=r"test: row 1: .*no label but -1.*-1 stands for no label"):
        load("lab/set")
    assert load("lab/set", splits={"train": "train"}).label_names == ("0", "1")


def test_labels_that_are_very_long_are_shown_cut(tmp_path):
    rows = [{"text": f"text {i}", "label": "89"[i % 2] * 5000} for i in range(40)]
    path = write(tmp_path, "jsonl", rows)
    assert len(load(path).label_names) == 2
    with pytest.raises(
        InputError, match=r"line 1: label '8{70,}\.\.\. is not one of a, b"
    ) as caught:
        load(path, labels=("a", "b"))
    assert len(str(caught.value)) < 400
