"""Rows in parts, and the files that they become."""

import csv
import hashlib
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st
from transformers import AutoModel, AutoTokenizer
from transformers.utils import logging

from fedsvd.errors import InputError
from fedsvd.tasks.write import Prepared, Row, apart, deal_domains, order, save, take_groups, write
from tests.tiny import make_inputs


def rows(*texts: str, label: str = "a", client: str = "c") -> list[Row]:
    return [Row((text,), label, client) for text in texts]


@given(
    st.dictionaries(st.text(max_size=3), st.integers(1, 5), max_size=12),
    st.integers(0, 8), st.integers(0, 8),
)  # fmt: skip
def test_no_group_stands_in_two_parts(sizes: dict[str, int], test: int, validation: int) -> None:
    groups = {key: rows(*(f"{key} {i}" for i in range(n))) for key, n in sizes.items()}
    found = take_groups(groups, {"test": test, "validation": validation})
    owner = {row.text[0]: key for key, held in groups.items() for row in held}
    keys = [{owner[row.text[0]] for row in found[part]} for part in ("test", "validation", "train")]
    assert sum(map(len, keys)) == len(set.union(*keys))
    total = sum(sizes.values())
    assert len(found["test"]) == min(test, total)
    # What is cut off is lost, and nothing else is.
    assert all(row in groups[owner[row.text[0]]] for part in found.values() for row in part)


def test_a_row_counts_once() -> None:
    groups = {"k": rows("x", "x", "y")}
    assert [row.text[0] for row in take_groups(groups, {"test": 2})["test"]] == ["x", "y"]
    assert [row.text[0] for row in take_groups(groups, {})["train"]] == ["x", "y"]


def test_domains_are_dealt_one_after_another() -> None:
    domains = [{"k": rows("a", "b"), "l": rows("c", "d")}, {"k": rows("a", "e")}]
    wanted = {"test": 1, "validation": 1}
    each = [take_groups(groups, wanted) for groups in domains]
    assert deal_domains(domains, wanted) == {
        part: each[0][part] + each[1][part] for part in ("train", "validation", "test")
    }


@pytest.mark.parametrize("shown", [True, False])
def test_a_model_is_written_without_a_progress_bar(
    shown: bool, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    make_inputs(tmp_path)
    folder = tmp_path / "model"
    model, tokenizer = AutoModel.from_pretrained(folder), AutoTokenizer.from_pretrained(folder)
    before = logging.is_progress_bar_enabled()
    (logging.enable_progress_bar if shown else logging.disable_progress_bar)()
    try:
        capfd.readouterr()
        save(model, tokenizer, tmp_path / "new")
        assert capfd.readouterr() == ("", "")
        assert logging.is_progress_bar_enabled() == shown
    finally:
        (logging.enable_progress_bar if before else logging.disable_progress_bar)()
    assert {"config.json", "model.safetensors", "tokenizer.json"} <= {
        p.name for p in (tmp_path / "new").iterdir()
    }


def test_the_order_is_that_of_hashes() -> None:
    digest = hashlib.sha256(b"page").digest()
    assert order("page") == int.from_bytes(digest[:8], "big") / 2**64
    groups = {key: rows(key) for key in "abcdef"}
    first = min("abcdef", key=order)
    assert take_groups(groups, {"test": 1})["test"] == rows(first)


def test_files_and_card(tmp_path: Path) -> None:
    parts = {"train": rows("one", "two, with comma"), "validation": rows("x"), "test": rows("y")}
    prepared = Prepared(("text",), parts, {"source": "here"})
    for _ in range(2):  # a second time in the place of the first
        place = write("mine", prepared, tmp_path)
    with (place / "train.csv").open(newline="") as file:
        assert list(csv.DictReader(file)) == [
            {"text": "one", "label": "a", "client": "c"},
            {"text": "two, with comma", "label": "a", "client": "c"},
        ]
    card = yaml.safe_load((place / "card.yaml").read_text())
    assert card["source"] == "here"
    assert card["parts"]["train"]["rows"] == 2
    assert card["parts"]["train"]["labels"] == {"a": 2}
    digest = hashlib.sha256((place / "train.csv").read_bytes()).hexdigest()
    assert card["parts"]["train"]["sha256"] == digest
    assert digest in (place / "README.md").read_text()
    assert sorted(p.name for p in tmp_path.iterdir()) == ["mine"]


def test_without_clients_there_is_no_column_of_them(tmp_path: Path) -> None:
    parts = {part: rows(part, client="") for part in ("train", "validation", "test")}
    place = write("mine", Prepared(("text",), parts, {}), tmp_path)
    assert (place / "train.csv").read_text() == "text,label\ntrain,a\n"


def test_one_client_becomes_the_public_part(tmp_path: Path) -> None:
    parts = {
        part: rows(f"{part} 1", f"{part} 2", client="c") + rows(f"{part} 3", client="d")
        for part in ("train", "validation", "test")
    }
    prepared = Prepared(("text",), parts, {"clients": "two letters"})
    new = apart("mine", prepared, "d")
    place = write("mine", new, tmp_path)
    card = yaml.safe_load((place / "card.yaml").read_text())
    assert {part: held["clients"] for part, held in card["parts"].items()} == {
        "train": {"c": 2}, "validation": {"c": 2}, "test": {"c": 2}, "public": {"d": 1}
    }  # fmt: skip
    assert card["clients"] == "two letters, without d"
    assert (place / "public.csv").read_text() == "text,label,client\ntrain 3,a,d\n"
    assert prepared.parts["train"] == parts["train"]  # the given data are as before


@pytest.mark.parametrize(("client", "said"), [("e", "'e' is not allowed"), ("", "is not allowed")])
def test_a_public_client_that_is_none_is_refused(client: str, said: str) -> None:
    both = [*rows("x"), *rows("y", client="d")]
    with pytest.raises(InputError, match=f"--public for mine: .*{said}.*choose from c, d"):
        apart(
            "mine", Prepared(("text",), {"train": both, "validation": [], "test": []}, {}), client
        )


@pytest.mark.parametrize("clients", [("", ""), ("c", "c")])
def test_the_only_client_cannot_be_public(clients: tuple[str, str]) -> None:
    both = [*rows("x", client=clients[0]), *rows("y", client=clients[1])]
    with pytest.raises(InputError, match="mine has no natural clients, or one alone"):
        apart("mine", Prepared(("text",), {"train": both, "validation": [], "test": []}, {}), "c")
