"""What a process keeps of data and tokens."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
from transformers import BertTokenizerFast

from fedsvd.data import sources, tokens
from fedsvd.data.kept import MOST, Kept, digest_of, signature
from fedsvd.data.sources import read_tables
from fedsvd.data.tokens import tokenise
from fedsvd.settings import DataSettings


def test_the_last_few_are_kept() -> None:
    made: list[int] = []
    kept: Kept[int] = Kept()
    for key in (1, 2, 1, 3, 1, 2):
        assert kept.get(key, lambda key=key: made.append(key) or key) == key  # type: ignore[misc]
    assert MOST == 2
    assert made == [1, 2, 3, 2]
    for _ in range(2):
        assert kept.get(None, lambda: made.append(9) or 9) == 9  # type: ignore[func-returns-value]
    assert made[-2:] == [9, 9]


def test_a_file_that_changed_is_read_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    times = []
    read = sources._read
    monkeypatch.setattr(sources, "_read", lambda s: times.append(s) or read(s))
    (tmp_path / "train.csv").write_text("text,label\na,0\nb,1\n")
    settings = DataSettings("mine", path=str(tmp_path))
    first = read_tables(settings)
    assert read_tables(settings) is first
    assert read_tables(DataSettings("mine", path=str(tmp_path), label="text")) is not first
    (tmp_path / "validation.csv").write_text("text,label\na,0\n")
    assert "validation" in read_tables(settings).parts
    (tmp_path / "train.csv").write_text("text,label\na,0\nc,1\nd,1\n")
    assert [t[0] for t in read_tables(settings).parts["train"].texts] == ["a", "c", "d"]
    assert len(times) == 4


def test_a_row_of_the_same_length_is_read_anew(tmp_path: Path) -> None:
    """Size and name stay: the time of change tells, and the system's where that was put back."""
    file, settings = tmp_path / "train.csv", DataSettings("mine", path=str(tmp_path))

    def first() -> str:
        return read_tables(settings).parts["train"].texts[0][0]

    file.write_text("text,label\na,0\nb,1\n")
    assert first() == "a"
    before = file.stat()
    file.write_text("text,label\nc,0\nb,1\n")
    os.utime(file, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    assert first() == "c"
    other = tmp_path / "other"  # as rsync and cp -p put a file in another's place
    other.write_text("text,label\nd,0\nb,1\n")
    os.utime(other, ns=(before.st_atime_ns, before.st_mtime_ns + 1))
    other.replace(file)
    assert first() == "d"


def test_each_part_of_a_signature_counts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "train.csv"
    file.write_text("a")
    real = Path.stat
    told = {n: getattr(file.stat(), n) for n in dir(file.stat()) if n.startswith("st_")}
    for part in ("st_size", "st_mtime_ns", "st_ctime_ns", "st_ino"):
        with monkeypatch.context() as patch:
            before = signature(file)
            other = SimpleNamespace(**{**told, part: told[part] + 1})
            patch.setattr(
                Path, "stat", lambda p, other=other, **how: other if p == file else real(p)
            )
            assert signature(file) != before, part


def test_what_cannot_be_looked_at_has_no_signature(tmp_path: Path) -> None:
    assert signature(tmp_path / "none") is None
    assert signature(tmp_path) == ()


def tokenizer(folder: Path, *words: str) -> BertTokenizerFast:
    folder.mkdir()
    special = ["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]"]
    (folder / "vocab.txt").write_text("\n".join([*special, *words]))
    return BertTokenizerFast.from_pretrained(str(folder))


def test_tokens_are_those_of_the_texts_and_the_tokeniser(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(tokens, "WORTH", 2)
    one, other = tokenizer(tmp_path / "a", "x", "y"), tokenizer(tmp_path / "b", "y", "x")
    texts = [("x y",), ("y",)]
    first = tokenise(one, texts, [0, 1], 8)
    again = tokenise(one, texts, [1, 0], 8)
    assert again.columns is first.columns
    assert again.labels.tolist() == [1, 0]
    assert [t.tolist() for t in first.columns["input_ids"]] == [[2, 5, 6, 3], [2, 6, 3]]
    turned = tokenise(other, texts, [0, 1], 8)
    assert [t.tolist() for t in turned.columns["input_ids"]] == [[2, 6, 5, 3], [2, 5, 3]]
    assert tokenise(one, [*texts, ("x",)], [0, 1, 0], 8).lengths.tolist() == [4, 3, 3]
    assert tokenise(one, texts, [0, 1], 3).lengths.tolist() == [3, 3]


def test_the_digest_tells_columns_apart() -> None:
    texts = [[("ab", "c")], [("a", "bc")], [("abc",)], [("ab",), ("c",)]]
    assert len({digest_of(t) for t in texts}) == 4
