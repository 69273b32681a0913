"""Ways to deal rows to clients beside labels' shares: files, shards, sizes, columns, partitioners."""

import csv
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from fedsvd.client.worker import deal
from fedsvd.data.partition import partition
from fedsvd.errors import InputError
from fedsvd.settings import PartitionSettings
from tests.conftest import compose_settings

LABELS = ("no", "yes")


def write(
    path: Path, rows: list[tuple[str, ...]], head: tuple[str, ...] = ("text", "label")
) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", newline="") as file:
        csv.writer(file).writerows([head, *rows])


def rows_of(name: str, n: int) -> list[tuple[str, ...]]:
    return [(f"{name} {i}", LABELS[i % 2]) for i in range(n)]


def dealt(folder: Path, *more: str, clients: int = 3) -> list[list[str]]:
    """Return each client's texts."""
    given = compose_settings(
        "data=folder", f"data.path={folder}", "data.labels=[no,yes]", "data.public_size=300",
        "partition.min_examples=0", "privacy=none", f"clients.number={clients}",
        "clients.per_round=1", *more,
    )  # fmt: skip
    task, parts = deal(given)
    return [[task.texts[row][0] for row in part] for part in parts]


def test_one_file_is_one_client(tmp_path: Path) -> None:
    for name, n in (("b", 3), ("a", 2), ("c", 1)):
        write(tmp_path / f"{name}.csv", rows_of(name, n))
    write(tmp_path / "c.csv", [("a 0", "no"), ("c 1", "yes")])  # what another one holds too
    write(tmp_path / "dev.csv", rows_of("v", 2))
    expected = [["a 0", "a 1"], ["b 0", "b 1", "b 2"], ["a 0", "c 1"]]
    assert dealt(tmp_path, "partition=files") == expected
    assert dealt(tmp_path, "partition=files", "partition.ids=[c,b,a]") == expected[::-1]
    small = ["partition=files", "partition.min_examples=3", "partition.small=drop"]
    assert dealt(tmp_path, *small, clients=1) == [["b 0", "b 1", "b 2"]]
    # Under privacy a client without a row, or without a file, is one still.
    private = ["partition=files", "privacy=dp_sgd"]
    write(tmp_path / "a.csv", [])
    assert dealt(tmp_path, *private) == [[], *expected[1:]]
    (tmp_path / "a.csv").unlink()
    assert dealt(tmp_path, *private, "partition.ids=[a,b,c]") == [[], *expected[1:]]


@pytest.mark.parametrize(
    ("files", "more", "message"),
    [
        (["a", "b"], [], "clients.number.*3.*2, the clients in .*, one file a client,: 'a', 'b'"),
        (["a", "b", "train"], [], "holds train.csv; with partition=files every file is a client's"),
        (["test"], [], "holds no file of a client"),
        (["a", "b", "c"], ["partition.ids=[a,b,d]"], "partition.ids: .*holds 'c', which are not"),
        (["a", "b", "c"], ["privacy=client_level"], "partition.ids: None.*files' names"),
        (["a", "b", "c"], ["privacy=dp_sgd", "partition.small=drop"], "partition.small: 'drop'"),
        (["a", "b", "c"], ["data.path=nowhere"], "'nowhere' is not allowed; .*must be a folder"),
    ],
    ids=lambda v: "-".join(v) if isinstance(v, list) else None,
)  # fmt: skip
def test_files_that_are_refused(
    files: list[str], more: list[str], message: str, tmp_path: Path
) -> None:
    for name in files:
        write(tmp_path / f"{name}.csv", rows_of(name, 20))
    with pytest.raises(InputError, match=message):
        dealt(tmp_path, "partition=files", *more)


TEXTS = [(f"text {i}",) for i in range(4000)]
HALVES = np.arange(4000) % 4


def test_a_clients_shards_hold_few_labels() -> None:
    own = PartitionSettings("shards", shards=2, min_examples=1)
    parts = partition(TEXTS, HALVES, 10, own, 0, 4)
    assert sorted(np.concatenate(parts).tolist()) == list(range(4000))
    # 20 pieces of 4 labels: each lies within one label, and each client has two of them.
    assert all(len(np.unique(HALVES[part])) <= 2 for part in parts)
    assert all(abs(len(part) - 400) < 5 * 400**0.5 for part in parts)
    pieces = [set(np.unique(HALVES[p])) for p in partition(TEXTS, HALVES, 10, own, 1, 4)]
    assert pieces != [set(np.unique(HALVES[p])) for p in parts]  # which ones is drawn


def test_clients_of_unequal_sizes_have_the_mixture_of_all() -> None:
    own = PartitionSettings("quantity", alpha=1.0, min_examples=100)
    parts = partition(TEXTS, HALVES, 5, own, 0, 4)
    sizes = np.array([len(part) for part in parts])
    assert sizes.max() > 2 * sizes.min()
    for part in parts:
        shares = np.bincount(HALVES[part], minlength=4) / len(part)
        assert np.abs(shares - 0.25).max() < 5 * (0.25 * 0.75 / len(part)) ** 0.5


def test_a_column_stands_in_the_labels_place(tmp_path: Path) -> None:
    topics = ("cars", "food", "law")
    rows = [(f"text {i}", LABELS[i % 2], topics[i % 3]) for i in range(900)]
    write(tmp_path / "train.csv", rows, ("text", "label", "topic"))
    write(
        tmp_path / "validation.csv", [("v", "no", ""), ("w", "yes", "")], ("text", "label", "topic")
    )
    with pytest.raises(InputError, match="column 'topic' holds no id"):
        dealt(tmp_path, "partition.column=topic")
    write(tmp_path / "validation.csv", [("v", "no", "x"), ("w", "yes", "x")],
          ("text", "label", "topic"))  # fmt: skip
    parts = dealt(tmp_path, "partition.column=topic", "partition.alpha=0.1", clients=4)
    assert sorted([text for part in parts for text in part]) == sorted(row[0] for row in rows)
    topic = {row[0]: row[2] for row in rows}
    label = {row[0]: row[1] for row in rows}
    held = max(parts, key=len)
    few = Counter(topic[text] for text in held).most_common(1)[0][1] / len(held)
    assert few > 0.6  # skewed by topic
    assert abs(sum(label[text] == "no" for text in held) / len(held) - 0.5) < 0.15  # not by label


@pytest.mark.parametrize("how", ["shards", "quantity", "column", "files"])
@pytest.mark.parametrize("seed", range(2))
def test_a_row_more_moves_no_other(how: str, seed: int, tmp_path: Path) -> None:
    """As for other partitions in test_stability; equal records of several clients are theirs."""
    rng = np.random.default_rng(seed)
    rows = [
        (f"text {rng.integers(150)}", LABELS[rng.integers(2)], "abc"[rng.integers(3)])
        for _ in range(300)
    ]
    at, new = int(rng.integers(300)), ("text 7", "yes", "b")
    more = {
        "shards": ["partition=shards"], "quantity": ["partition=quantity"],
        "column": ["partition.column=who"], "files": ["partition=files"],
    }[how]  # fmt: skip
    places = []
    for held in (rows, [*rows[:at], new, *rows[at:]], rows[:at] + rows[at + 1 :]):
        write(tmp_path / "validation.csv", [("v", "no", "a"), ("w", "yes", "a")],
              ("text", "label", "who"))  # fmt: skip
        if how == "files":
            for name in "abc":
                write(tmp_path / f"{name}.csv", [r[:2] for r in held if r[2] == name])
        else:
            write(tmp_path / "train.csv", held, ("text", "label", "who"))
        given = compose_settings(
            "data=folder", f"data.path={tmp_path}", "data.labels=[no,yes]", "data.public_size=300",
            "data.limit=200", "data.public=20", "clients.number=3", f"seed={seed}", *more,
            "partition.min_examples=0",
        )  # fmt: skip
        task, parts = deal(given)
        places.append([Counter((task.texts[i], int(task.labels[i])) for i in p) for p in parts])
    for other, row in zip(places[1:], (new, rows[at]), strict=True):
        for before, after in zip(places[0], other, strict=True):
            moved = (before - after) + (after - before)
            assert set(moved) <= {((row[0],), LABELS.index(row[1]))}


def test_partitioners_of_flower(tmp_path: Path) -> None:
    pytest.importorskip(
        "flwr_datasets", reason="the optional extra [partitioners] is not installed"
    )
    rows = [(f"text {i}", LABELS[i % 2], "abc"[i % 3]) for i in range(120)]
    write(tmp_path / "train.csv", rows, ("text", "label", "who"))
    write(tmp_path / "validation.csv", [("v", "no", "a"), ("w", "yes", "a")],
          ("text", "label", "who"))  # fmt: skip
    place = "partition._target_=flwr_datasets.partitioner"
    whole = sorted(row[0] for row in rows)
    drawn = dealt(tmp_path, "partition=flower", "partition.alpha=0.3", clients=4)
    assert sorted([text for part in drawn for text in part]) == whole
    assert dealt(tmp_path, "partition=flower", "partition.alpha=0.3", clients=4) == drawn
    other = dealt(tmp_path, "partition=flower", "partition.alpha=0.3", "seed=1", clients=4)
    assert other != drawn  # its seed follows from the run's
    by_id = dealt(tmp_path, f"{place}.NaturalIdPartitioner", "partition.column=who")
    assert by_id == [[row[0] for row in rows if row[2] == name] for name in "abc"]
    few = [f"{place}.PathologicalPartitioner", "+partition.num_classes_per_partition=1"]
    label = {row[0]: row[1] for row in rows}
    for part in dealt(tmp_path, *few, clients=2):
        assert len({label[text] for text in part}) == 1
    for more, message in (
        (
            [f"{place}.NaturalIdPartitioner", "partition.column=who"],
            "clients.number.*3, as many as",
        ),
        ([f"{place}.NaturalIdPartitionr"], "did you mean flwr_datasets.partitioner.NaturalId"),
        ([f"{place}.IidPartitioner", "+partition.sise=3"], "partition.sise: 'sise' is not allowed"),
        (
            [f"{place}.SizePartitioner", "+partition.partition_sizes=[500,1]"],
            "SizePartitioner failed",
        ),
        (["partition._target_=collections.Counter"], "is not a partitioner"),
        ([f"{place}.IidPartitioner", "partition.min_examples=61"], "leaves client 0 with 60"),
    ):
        with pytest.raises(InputError, match=message):
            dealt(tmp_path, *more, clients=2)


def test_options_without_a_class() -> None:
    with pytest.raises(InputError, match=r"partition\.sise: "):
        compose_settings("+partition.sise=3")
    with pytest.raises(InputError, match=r"partition\._target_: None"):
        compose_settings("partition=flower", "partition._target_=null")
