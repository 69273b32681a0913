"""Encodings, packed files and binary ones that are damaged."""

import gzip
import re

import pytest
from datasets import Dataset

from fedsvd.data.task import load_task
from fedsvd.errors import InputError
from fedsvd.settings import DataSettings

TEXT = "text,label\n" + "".join(f"text {i} é,{i % 2}\n" for i in range(40))
JSON = "[" + ",\n".join(f'{{"text": "text {i} é", "label": {i % 2}}}' for i in range(40)) + "]"
BOM = b"\xef\xbb\xbf"


def load(path, data):
    path.write_bytes(data)
    return load_task(DataSettings("mine", path=str(path)), 0)


@pytest.mark.parametrize(
    ("name", "data"),
    [
        ("a.csv", BOM + TEXT.encode()), ("a.csv.gz", gzip.compress(BOM + TEXT.encode(), mtime=0)),
        ("a.csv", TEXT.replace("\n", "\r\n").encode()), ("a.json", BOM + JSON.encode()),
        ("a.json", b"\n\n  " + JSON.encode()), ("a.JSON.GZ", gzip.compress(JSON.encode(), mtime=0)),
        ("a.tsv", TEXT.replace(",", "\t").encode()),
        ("a.csv", gzip.decompress(gzip.compress(TEXT.encode(), mtime=0))),
    ],
)  # fmt: skip
def test_utf8_with_and_without_its_mark(name, data, tmp_path):
    task = load(tmp_path / name, data)
    assert [t[0] for t in task.texts] == [f"text {i} é" for i in range(40)]


PARQUET = b"PAR1" + bytes(30) + b"PAR1"
BAD = [
    (
        "a.csv",
        TEXT.encode("utf-16"),
        "line 1 holds a NUL byte; is it a text file? it starts as UTF-16",
    ),
    ("a.csv", TEXT.encode("utf-16-le"), "it looks like UTF-16 or UTF-32; save it as UTF-8"),
    ("a.csv", TEXT.encode("utf-32-be"), "it looks like UTF-16 or UTF-32; save it as UTF-8"),
    ("a.jsonl", "“плохо”\n".encode("utf-16")[:9], "it starts as UTF-16 does; save it as UTF-8"),
    (
        "a.csv",
        TEXT.encode("cp1252"),
        "line 2 is not UTF-8 (byte 0xe9); save the file as UTF-8 (it may",
    ),
    ("a.tsv", TEXT.replace(",", "\t").encode("latin1"), "line 2 is not UTF-8"),
    ("a.json", JSON.encode("latin1"), "line 1 is not UTF-8 (byte 0xe9)"),
    ("a.csv", gzip.compress(TEXT.encode(), mtime=0), "it starts as gzip does; call it .gz"),
    ("a.csv.gz", TEXT.encode(), "cannot be read: Not a gzipped file"),
    (
        "a.csv.gz",
        gzip.compress(TEXT.encode(), mtime=0)[:60],
        "cannot be read: Compressed file ended",
    ),
    ("a.csv.gz", gzip.compress(b"x" * (2 << 20), mtime=0), "line 1 is longer than 1048576 bytes"),
    ("a.csv", PARQUET, "it starts as Parquet does; call it .parquet"),
    ("a.csv", b"PK\x03\x04\0\0", "ZIP archive or an Excel sheet"),
    ("a.parquet", TEXT.encode(), "cannot be read as Parquet: "),
    ("a.parquet", PARQUET, "cannot be read as Parquet: "),
    ("a.parquet", b"", "cannot be read as Parquet: "),
    ("a.arrow", TEXT.encode(), "cannot be read as Arrow: "),
    ("a.arrow", b"", "cannot be read as Arrow: "),
    ("a.json", b"[1, 2]", "row 1 is not a JSON object"),
    ("a.json", b"[]", "is empty"),
    ("a.json", b"", "is empty"),
    (
        "a.json",
        b'[{"text": "a", "label": 0}',
        "a.json is not JSON: Expecting ',' delimiter: line 1",
    ),
    ("a.json", b'[{"text": "a", "label": 0}, {"text": "b"}]', "row 2: no 'label' (data.label)"),
    ("a.json", b'[{"text": "a", "text": "b", "label": 0}]', "a key is there twice"),
    ("a.json", b"[" * 100_000, "too deeply nested"),
    ("a.json", b'{"text": ["a"], "label": [0]}', "line 1: column 'text' holds no text but ['a']"),
    ("a.csv", b"text;label\na;0\n", "it has text;label (separated by ';'? .csv takes commas"),
    ("a.csv", b"text\tlabel\na\t0\n", "(separated by '\\t'? .csv takes commas, .tsv tabs)"),
    ("a.tsv", b"text,label\na,0\n", "no column 'text'"),
    (
        "a.tsv",
        b"text\tlabel\na\tb\t0\n",
        "line 2 has 3 fields, the header 2; texts with tabs need quo",
    ),
]


@pytest.mark.parametrize(("name", "data", "message"), BAD, ids=lambda v: str(v)[:30])
def test_files_that_are_refused(name, data, message, tmp_path):
    with pytest.raises(InputError, match=re.escape(message)) as caught:
        load(tmp_path / name, data)
    assert str(tmp_path / name) in str(caught.value)
    assert "\n" not in str(caught.value)
    assert len(str(caught.value)) < 600


def test_a_parquet_file_that_is_cut_inside(tmp_path):
    path = tmp_path / "a.parquet"
    Dataset.from_list([{"text": f"text {i}" * 20, "label": i % 2} for i in range(4000)]).to_parquet(
        path
    )
    data = bytearray(path.read_bytes())
    data[200:4000] = bytes(3800)
    with pytest.raises(InputError, match=r"row 1: cannot be read as Parquet: ") as caught:
        load(path, bytes(data))
    assert "\n" not in str(caught.value)


def test_only_the_columns_that_are_asked_for_are_read(tmp_path):
    """Others may hold what cannot be shown as Python values."""
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table({
        "text": [f"text {i}" for i in range(40)], "label": [i % 2 for i in range(40)],
        "when": pa.array([2**62] * 40, pa.timestamp("us")),
    })  # fmt: skip
    parquet.write_table(table, tmp_path / "a.parquet")
    assert load_task(DataSettings("mine", path=str(tmp_path / "a.parquet")), 0).classes == 2
    named = DataSettings("mine", path=str(tmp_path / "a.parquet"), id="when")
    with pytest.raises(InputError, match=r"row 1: cannot be read as Parquet: "):
        load_task(named, 0)


def test_columns_of_one_name(tmp_path):
    import pyarrow as pa
    from pyarrow import parquet

    table = pa.table([["a"], [0], ["b"]], names=["text", "label", "text"])
    parquet.write_table(table, tmp_path / "a.parquet")
    with pytest.raises(InputError, match=r"a\.parquet: column 'text' is there twice"):
        load_task(DataSettings("mine", path=str(tmp_path / "a.parquet")), 0)
