import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from fedsvd.data.partition import partition
from fedsvd.data.task import load_task
from fedsvd.data.tokens import Tokens
from fedsvd.errors import InputError
from fedsvd.randomness import Purpose, numpy_stream
from fedsvd.settings import DataSettings, PartitionSettings


def test_default_task_is_deduplicated_and_disjoint(settings):
    task = load_task(settings().data, seed=0)
    parts = [task.train, task.validation, task.test]
    rows = np.concatenate(parts)
    assert len(rows) == len(set(rows.tolist())) == 8530 - task.duplicates
    assert len(set(task.texts)) == len(task.texts)
    assert [len(p) for p in parts] == [6749, 862, 919]
    for part, share in zip(parts, (0.8, 0.1, 0.1), strict=True):  # five standard deviations
        assert abs(len(part) - share * 8530) < 5 * (share * (1 - share) * 8530) ** 0.5
        assert abs(task.labels[part].mean() - 0.5) < 5 * 0.5 / len(part) ** 0.5
    again, other = load_task(settings().data, seed=0), load_task(settings().data, seed=1)
    assert np.array_equal(task.test, again.test)
    assert not np.array_equal(task.test, other.test)


def write(path, text):
    path.write_text(text, encoding="utf-8")
    return DataSettings("mine", path=str(path))


def rows(n):
    return "".join(f"text {i},{i % 2}\n" for i in range(n))


def test_a_csv_and_a_folder(tmp_path):
    task = load_task(write(tmp_path / "all.csv", "text,label\n" + rows(50) + "text 0,0\n"), 0)
    assert len(task.train) + len(task.validation) + len(task.test) == 50
    assert task.duplicates == 1
    folder = tmp_path / "split"
    folder.mkdir()
    (folder / "train.csv").write_text("text,label\n" + rows(30))
    (folder / "validation.jsonl").write_text('{"text": "text 3", "label": 1}\n')
    task = load_task(DataSettings("mine", path=str(folder)), 0)
    assert len(task.validation) == 1
    assert len(task.train) == 29  # the validation text is dropped from training


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("txt,label\na,0\n", r"no column 'text'.*did you mean 'txt'"),
        ("text,lable\na,0\n", r"no column 'label'.*did you mean 'lable'"),
        ("text,label\n,0\n", r"line 2: column 'text' holds no text"),
        ("text,label\n", "no rows"),
        ("", "is empty"),
        ("text,label\na,0\nb,0\n", "1 label"),
    ],
)
def test_unusable_files_are_named(tmp_path, text, message):
    with pytest.raises(InputError, match=message):
        load_task(write(tmp_path / "bad.csv", text), 0)


def test_other_unusable_sources(tmp_path):
    (tmp_path / "latin.csv").write_bytes(b"text,label\ncaf\xe9,0\n")
    with pytest.raises(InputError, match="line 2 is not UTF-8"):
        load_task(DataSettings("mine", path=str(tmp_path / "latin.csv")), 0)
    with pytest.raises(InputError, match="does not exist"):
        load_task(DataSettings("mine", path=str(tmp_path / "nowhere")), 0)
    with pytest.raises(InputError, match=r"holds no \.csv"):
        load_task(DataSettings("mine", path=_empty(tmp_path)), 0)
    bad = write(tmp_path / "range.csv", "text,label\na,0\nb,7\n")
    with pytest.raises(InputError, match="label '7' is not one of neg, pos"):
        load_task(DataSettings("mine", path=bad.path, labels=("neg", "pos")), 0)


def _empty(tmp_path):
    folder = tmp_path / "empty"
    folder.mkdir()
    return str(folder)


def names(n):
    return [(f"example {i}",) for i in range(n)]


@given(st.integers(1, 8), st.floats(0.1, 100), st.integers(0, 50))
def test_partition_deals_every_example_once(clients, alpha, seed):
    labels = np.arange(400) % 3
    parts = partition(
        names(400), labels, clients, PartitionSettings("dirichlet", alpha, 1, 500), seed
    )
    assert sorted(np.concatenate(parts).tolist()) == list(range(400))


def test_partition_follows_alpha_and_the_seed():
    labels = np.arange(6000) % 2
    even = partition(names(6000), labels, 4, PartitionSettings("dirichlet", 1e4, 1, 1), 0)
    assert max(len(p) for p in even) < 1.1 * 1500
    skewed = partition(names(6000), labels, 4, PartitionSettings("dirichlet", 0.2, 1, 50), 0)
    assert max(abs(labels[p].mean() - 0.5) for p in skewed) > 0.2
    iid = partition(names(6000), labels, 4, PartitionSettings("iid"), 0)
    assert all(abs(len(p) - 1500) < 5 * (6000 * 3 / 16) ** 0.5 for p in iid)
    assert all(abs(labels[p].mean() - 0.5) < 5 * 0.5 / len(p) ** 0.5 for p in iid)


def test_dirichlet_shares_are_what_the_sizes_follow():
    """Against the shares themselves, drawn here from the same streams: chi-square of the counts."""
    labels, shares = np.arange(8000) % 2, []
    parts = partition(names(8000), labels, 5, PartitionSettings("dirichlet", 2.0, 1, 1), 3)
    for label in (0, 1):
        rng = numpy_stream(3, Purpose.PARTITION, 0, f"label {label}")
        shares.append(rng.dirichlet(np.full(5, 2.0)))
        counts = np.array([(labels[p] == label).sum() for p in parts])
        expected = 4000 * shares[label]
        assert ((counts - expected) ** 2 / expected).sum() < 25  # 4 degrees of freedom, p < 1e-4
    assert not np.allclose(*shares)


# As the split's authors' data has them, in per mille: rows are labels, columns clients 0 to 5.
PER_MILLE = {
    2: [[196, 469, 187, 18, 130, 1], [20, 100, 4, 89, 186, 600]],
    3: [
        [104, 25, 673, 24, 100, 73], [49, 16, 7, 405, 58, 465], [333, 168, 113, 0, 64, 322],
    ],
}  # fmt: skip


@pytest.mark.parametrize("classes", PER_MILLE)
def test_the_published_shares_come_out(classes):
    """Of 10,000 examples a label: each count within five deviations of the share, none of zero."""
    labels = np.arange(10_000 * classes) % classes
    parts = partition(names(len(labels)), labels, 6, PartitionSettings("published"), 0, classes)
    assert sorted(np.concatenate(parts).tolist()) == list(range(len(labels)))
    found = np.array([[(labels[p] == label).sum() for p in parts] for label in range(classes)])
    shares = np.array(PER_MILLE[classes]) / 1000
    shares /= shares.sum(axis=1, keepdims=True)
    assert (np.abs(found - 10_000 * shares) <= 5 * np.sqrt(10_000 * shares * (1 - shares))).all()
    others = partition(names(len(labels)), labels, 6, PartitionSettings("published"), 1, classes)
    assert [p.tolist() for p in parts] != [p.tolist() for p in others]


def test_the_published_split_is_for_six_clients_and_two_or_three_labels(settings):
    with pytest.raises(InputError, match=r"clients\.number: 5 .* 6 with partition=published"):
        settings("partition=published", "clients.number=5")
    with pytest.raises(InputError, match=r"partition: 'published' .* the task has 4"):
        partition(names(80), np.arange(80) % 2, 6, PartitionSettings("published"), 0, 4)


def test_a_client_without_examples_is_refused():
    with pytest.raises(InputError, match=r"client \d+ of 50 is left with 0 examples"):
        partition(names(60), np.arange(60) % 2, 50, PartitionSettings("dirichlet", 0.01, 1, 3), 0)


def tokens(lengths):
    ids = [torch.arange(1, n + 1) for n in lengths]
    return Tokens({"input_ids": ids}, torch.zeros(len(ids)).long(), torch.tensor(lengths), 0)


@given(st.lists(st.integers(1, 60), min_size=0, max_size=80), st.integers(1, 400))
def test_microbatches_hold_each_row_once_within_the_budget(lengths, budget):
    table = tokens(lengths)
    groups = list(table.microbatches(range(len(lengths)), budget))
    assert sorted(r for g in groups for r in g) == list(range(len(lengths)))
    for group in groups:
        assert len(group) == 1 or len(group) * max(lengths[r] for r in group) <= budget


def test_a_batch_is_padded_and_masked():
    batch = tokens([3, 1]).batch([1, 0])
    assert batch.inputs["input_ids"].tolist() == [[1, 0, 0], [1, 2, 3]]
    assert batch.inputs["attention_mask"].tolist() == [[1, 0, 0], [1, 1, 1]]
