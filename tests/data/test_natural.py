"""Clients as a column of the data says."""

import csv
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest

from fedsvd.client.worker import deal
from fedsvd.data.natural import natural
from fedsvd.errors import InputError
from fedsvd.settings import PartitionSettings, Settings

OWN = PartitionSettings("natural", min_examples=1)


def write(folder: Path, owners: list[str]) -> None:
    for part in ("train", "validation"):
        with (folder / f"{part}.csv").open("w", newline="") as file:
            rows = csv.writer(file)
            rows.writerow(["text", "label", "user"])
            rows.writerows([f"{part} {i}", str(i % 2), o] for i, o in enumerate(owners))


def dealt(settings: Callable[..., Settings], folder: Path, *more: str) -> list[list[str]]:
    chosen = settings(
        "data=folder", f"data.path={folder}", "data.labels=['0','1']", "data.public_size=9",
        "partition=natural", "partition.min_examples=1", "clients.number=3", "clients.per_round=1",
        "privacy=none", *more,
    )  # fmt: skip
    task, parts = deal(chosen)
    return [[task.texts[row][0] for row in part] for part in parts]


def test_each_client_has_its_own_rows(settings: Callable[..., Settings], tmp_path: Path) -> None:
    write(tmp_path, ["b", "a", "b", "c", "a", "b"])
    expected = [["train 1", "train 4"], ["train 0", "train 2", "train 5"], ["train 3"]]
    assert dealt(settings, tmp_path, "partition.column=user") == expected
    assert dealt(settings, tmp_path, "data.client=user") == expected
    turned = dealt(settings, tmp_path, "data.client=user", "partition.ids=[c,b,a]")
    assert turned == expected[::-1]


def test_rows_keep_their_owner_when_a_text_stands_twice(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    rows = [("x", "0", "b"), ("x", "0", "a"), ("y", "0", "a"), ("x", "1", "a"), ("z", "0", "c")]
    text = "\n".join(["text,label,user", *map(",".join, rows)])
    (tmp_path / "train.csv").write_text(text)
    (tmp_path / "validation.csv").write_text("text,label,user\nv,0,a\nw,1,a\n")
    # Equal records of one client are one, of two clients two.
    assert dealt(settings, tmp_path, "partition.column=user") == [["x", "y", "x"], ["x"], ["z"]]


def test_under_privacy_the_ids_are_declared(
    settings: Callable[..., Settings], tmp_path: Path
) -> None:
    write(tmp_path, ["b", "a", "c"])
    private = ["partition.column=user", "privacy=dp_sgd"]
    with pytest.raises(
        InputError, match=r"partition.ids: None is not allowed; it must be the clients"
    ):
        dealt(settings, tmp_path, *private)
    expected = [["train 1"], ["train 0"], ["train 2"]]
    assert dealt(settings, tmp_path, *private, "data.clients=[a,b,c]") == expected
    turned = [*private, "data.clients=[a,b,c]", "partition.ids=[c,b,a]"]
    assert dealt(settings, tmp_path, *turned) == expected[::-1]


@pytest.mark.parametrize(
    ("owners", "more", "message"),
    [
        (["a", "b", "c"], [], "partition.column: missing"),
        (["a", "b", "c"], ["partition.column=usr"], "no column 'usr' .partition.column.*'user'"),
        (["a", "b", "a"], ["partition.column=user"], "clients.number.*2, the clients in .*'a', 'b'"),
        (["a", "b", ""], ["partition.column=user"], "column 'user' holds no id but ''"),
        (
            ["a", "b", "d"], ["partition.column=user", "partition.ids=[a,b,c]"],
            "partition.ids: column 'user' holds 'd', which are not among 'a', 'b', 'c'",
        ),
        (["a", "b", "c"], ["partition.column=user", "partition.min_examples=2"],
         "client 'a' of column 'user' has 1 training examples, fewer than 2"),
        (["a", "b", "c", "c"], ["partition.column=user", "partition.min_examples=2",
                                "partition.small=drop"],
         "clients.number.*1, the clients in column 'user' that have 2 training examples: 'c'"),
        (["a", "b", "c"], ["partition.column=user", "partition.ids=[a,a]"], "no two of them equal"),
    ],
)  # fmt: skip
def test_what_cannot_be_dealt_is_refused(
    settings: Callable[..., Settings], tmp_path: Path, owners: list[str], more: list[str],
    message: str,
) -> None:  # fmt: skip
    write(tmp_path, owners)
    with pytest.raises(InputError, match=message):
        dealt(settings, tmp_path, *more)


def test_ten_thousand_clients_are_dealt_as_one_would_by_hand() -> None:
    drawn = np.random.default_rng(0).integers(10_000, size=60_000)
    owners = [f"user {k}" for k in [*range(10_000), *drawn.tolist()]]
    parts, ids = natural(owners, 10_000, OWN, "column 'user'")
    assert sum(map(len, parts)) == len(owners)
    for k in range(0, 10_000, 997):
        assert parts[k].tolist() == [i for i, owner in enumerate(owners) if owner == ids[k]]
