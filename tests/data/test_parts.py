"""Which file is which part: none is dropped without a word."""

import re

import pytest
from datasets import Dataset, DatasetDict

from fedsvd.client.worker import deal
from fedsvd.data.task import load_task
from fedsvd.errors import InputError
from fedsvd.settings import DataSettings
from tests.conftest import compose_settings


def rows(name, n=60):
    return [{"text": f"{name} {i}", "label": i % 2} for i in range(n)]


def write(folder, *names):
    """Write files that are told apart by their texts."""
    folder.mkdir(exist_ok=True)
    for name in names:
        path, data = folder / name, rows(name)
        if name.casefold().endswith(".parquet"):
            Dataset.from_list(data).to_parquet(path)
        elif name.casefold().endswith((".csv", ".xlsx", ".txt", ".bz2", ".bak", ".sha256")):
            path.write_text("text,label\n" + "".join(f"{r['text']},{r['label']}\n" for r in data))
        else:
            path.write_text(
                "".join(f'{{"text": "{r["text"]}", "label": {r["label"]}}}\n' for r in data)
            )
    return folder


def load(folder, **options):
    return load_task(DataSettings("mine", path=str(folder), **options), 0)


def names_in(task):
    """Return the files whose rows stand in each part."""
    return {
        part: {task.texts[i][0].split()[0] for i in getattr(task, part)}
        for part in ("train", "validation", "test", "public")
    }


@pytest.mark.parametrize(
    ("names", "part", "told"),
    [
        (["train.csv", "validation.jsonl"], "validation", ""),
        (["train.csv", "dev.csv"], "validation", "dev.csv is taken for the validation part"),
        (["train.csv", "val.jsonl"], "validation", "val.jsonl is taken for the validation part"),
        (["train.csv", "valid.parquet"], "validation", "valid.parquet is taken for the validation"),
        (["train.CSV", "Test.JSONL"], "test", ""),
        (["TRAIN.Parquet", "validation.csv"], "validation", ""),
        (["train.parquet", "test.ndjson"], "test", ""),
    ],
)
def test_parts_by_name(names, part, told, tmp_path):
    task = load(write(tmp_path / "d", *names))
    found = names_in(task)
    assert found["train"] == {names[0]}
    assert found[part] == {names[1]}
    assert told in "".join(task.notes)
    assert len(task.notes) == bool(told)


@pytest.mark.parametrize(
    ("names", "message"),
    [
        (["train.csv", "train.jsonl"], "holds train.csv and train.jsonl, both for the train part"),
        (["train.csv", "TRAIN.parquet"], "both for the train part; leave one of them"),
        (["train.csv", "dev.csv", "validation.csv"], "holds dev.csv and validation.csv, both for"),
        (["train.csv", "dev.csv", "val.jsonl"], "both for the validation part"),
        (["train.csv", "test.csv", "test.json"], "both for the test part"),
        (["train.csv", "validation.xlsx"], "would be the validation part by its name, but its"),
        (["train.csv", "dev.txt"], "dev.txt: would be the validation part by its name"),
        (["train.csv", "test.csv.bz2"], "test.csv.bz2: would be the test part"),
        (["a.csv", "b.csv"], "must hold train.csv (or .jsonl), or a single file; it holds a.csv"),
        (["a.csv", "b.parquet"], "it holds a.csv, b.parquet"),
        (["data.csv", "test.csv"], "it holds data.csv, test.csv"),
        (["public.csv"], "must hold train.csv"),
        (["validation.csv"], "the train part is empty; its parts are validation"),
        (["train-00000-of-00002.parquet"], "of its 2 files 1 are here; number 1 is missing"),
        (["train-00001-of-00002.csv", "test.csv"], "number 0 is missing"),
        (["train-00000-of-00001.parquet", "train.parquet"], "both for the train part"),
        (["notes.txt"], "holds no .csv or .jsonl file, nor .csv, .tsv"),
    ],
    ids=lambda v: str(v)[:40],
)  # fmt: skip
def test_folders_that_are_refused(names, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load(write(tmp_path / "d", *names))
    assert str(tmp_path) in str(caught.value)
    assert "\n" not in str(caught.value)


def test_files_that_are_no_part_are_named(tmp_path, capsys):
    folder = write(
        tmp_path / "d", "train.csv", "old.parquet", "extra.jsonl", "README.md", "train.csv.sha256",
        "train.txt", "dataset_infos.json", ".hidden.csv",
    )  # fmt: skip
    task = load(folder)
    assert task.notes == (f"{folder}: extra.jsonl, old.parquet are no parts and are not read",)
    given = ["data=folder", f"data.path={folder}", "privacy=none", "partition=iid",
             "clients.number=3", "partition.min_examples=1"]  # fmt: skip
    capsys.readouterr()
    deal(compose_settings(*given))
    assert capsys.readouterr().err == f"warning: {task.notes[0]}\n"


def test_a_single_file_and_what_stands_beside_it(tmp_path):
    task = load(write(tmp_path / "a", "all.parquet", "README.md"))
    assert names_in(task)["train"] == names_in(task)["test"] == {"all.parquet"}
    task = load(write(tmp_path / "b", "all.csv", "names.json", "public.csv"), public=3)
    assert names_in(task)["public"] == {"public.csv"}
    assert task.notes == (f"{tmp_path / 'b'}: all.csv is read, names.json not",)


def test_shards_are_one_part(tmp_path):
    names = [f"train-{i:05}-of-00003.parquet" for i in range(3)]
    folder = write(tmp_path / "d", *names, "test-00000-of-00001.parquet")
    found = names_in(load(folder))
    assert found["train"] == set(names)
    assert found["test"] == {"test-00000-of-00001.parquet"}
    Dataset.from_list([*rows("x", 4), {"text": None, "label": 1}]).to_parquet(folder / names[1])
    with pytest.raises(InputError, match=r"train-00001-of-00003\.parquet: row 5: column 'text'"):
        load(folder)


def test_a_folder_whose_data_is_one_deeper(tmp_path):
    write(tmp_path / "d", "README.md")
    write(tmp_path / "d" / "data", "train.csv")
    with pytest.raises(InputError, match=r"its folder 'data' does: data\.path=.*d/data$"):
        load(tmp_path / "d")


def test_servers_own_parts_alone(tmp_path):
    folder = write(tmp_path / "d", "validation.csv")
    settings = DataSettings("mine", path=str(folder), labels=("0", "1"))
    assert len(load_task(settings, 0, "server").validation) == 60  # and no tenth of it


def test_files_of_unknown_formats(tmp_path):
    for name in ("a.txt", "a.xlsx", "a", "a.parquet.gz", ".csv"):
        write(tmp_path, "b.csv").joinpath("b.csv").rename(tmp_path / name)
        with pytest.raises(
            InputError, match=rf"/{name}: is no file of a known format; .*\.parquet"
        ):
            load(tmp_path / name)


def saved(tmp_path, *splits):
    DatasetDict({s: Dataset.from_list(rows(s)) for s in splits}).save_to_disk(tmp_path / "s")
    return tmp_path / "s"


@pytest.mark.parametrize(
    ("splits", "part", "told"),
    [
        (["train", "validation"], "validation", 0), (["train", "dev"], "validation", 1),
        (["train", "test", "unsupervised"], "test", 1), (["train", "test"], "test", 0),
    ],
)  # fmt: skip
def test_splits_by_name(splits, part, told, tmp_path):
    task = load(saved(tmp_path, *splits))
    assert names_in(task)["train"] == {"train"}
    assert names_in(task)[part] == {splits[1]}
    assert len(task.notes) == told
    assert all(splits[-1] in note for note in task.notes)


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        (["train", "dev", "validation"], "its splits 'dev' and 'validation' are both for the valid"),
        (["matched", "mismatched"], "which of its splits ['matched', 'mismatched'] is which part?"),
        (["test", "extra"], "which of its splits ['test', 'extra'] is which part? Say it with"),
    ],
)  # fmt: skip
def test_splits_that_are_refused(splits, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)):
        load(saved(tmp_path, *splits))


def test_splits_that_are_told(tmp_path):
    path = saved(tmp_path, "matched", "mismatched")
    found = names_in(load(path, splits={"train": "mismatched", "test": "matched"}))
    assert found["test"] == {"matched"}
    whole = names_in(load(path, splits={"all": "matched"}))
    assert whole["train"] == whole["validation"] == {"matched"}
    with pytest.raises(InputError, match=r"data\.splits: 'dev' is not a split of .*matched"):
        load(path, splits={"train": "dev"})


@pytest.mark.parametrize(
    ("splits", "message"),
    [
        ({"trian": "train"}, "data.splits: 'trian' is not allowed (did you mean 'train'?)"),
        ({"all": "train", "test": "test"}, "either all, which is split here, or the parts"),
        ({}, "either all, which is split here, or the parts"),
    ],
)  # fmt: skip
def test_splits_of_settings(splits, message):
    with pytest.raises(InputError, match=re.escape(message)):
        DataSettings("mine", splits=splits)


def test_one_data_set_is_split_here_and_what_stands_beside_it_is_named(tmp_path):
    Dataset.from_list(rows("one", 60)).save_to_disk(tmp_path / "s")
    assert names_in(load(tmp_path / "s"))["train"] == {"one"}
    write(tmp_path / "s", "extra.csv")
    assert load(tmp_path / "s").notes == (f"{tmp_path / 's'}: extra.csv are not read",)


def test_a_saved_folder_that_is_damaged(tmp_path):
    path = saved(tmp_path, "train", "test")
    next((path / "test").glob("*.arrow")).write_bytes(b"ARROW1")
    with pytest.raises(InputError, match="cannot be read as a folder of save_to_disk") as caught:
        load(path)
    assert "\n" not in str(caught.value)
