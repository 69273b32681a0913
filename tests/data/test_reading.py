"""Names or indices: for the whole column, over all parts, against a reading by hand."""

import csv
import itertools

import pytest
from datasets import ClassLabel, Dataset, DatasetDict, Features, Value

from fedsvd.data.labels import by_index, by_name, label_index, two_ways
from fedsvd.data.sources import read_splits
from fedsvd.data.task import load_task
from fedsvd.errors import InputError
from fedsvd.settings import DataSettings

STARS = ("1", "2", "3", "4", "5")


def folder(tmp_path, **parts):
    for part, labels in parts.items():
        with (tmp_path / f"{part}.csv").open("w", newline="") as file:
            rows = [(f"{part} {i}", label) for i, label in enumerate(labels)]
            csv.writer(file).writerows([("text", "label"), *rows])
    return str(tmp_path)


def read(path, labels, **options):
    """Return {text: name of its label} of all rows."""
    given = {k: options.pop(k) for k in ("holder", "private") if k in options}
    task = load_task(DataSettings("mine", path=path, labels=labels, **options), 0, **given)
    return {text[0]: task.label_names[y] for text, y in zip(task.texts, task.labels, strict=True)}


def test_indices_of_names_that_are_numbers(tmp_path):
    """The issue's: 0 and 1 both became "1"."""
    path = folder(tmp_path, train=[0, 1, 2, 3, 4] * 8, validation=[1, 2])
    for kind in ("auto", "indices"):
        found = read(path, STARS, label_type=kind)
        assert [found[f"train {i}"] for i in range(5)] == list(STARS)
        assert found["validation 0"] == "2"  # the index 1, though as a name it would do too


def test_names_that_are_numbers(tmp_path):
    path = folder(tmp_path, train=[1, 2, 3, 4, 5] * 8, validation=[1, 2])
    for kind in ("auto", "names"):
        found = read(path, STARS, label_type=kind)
        assert [found[f"train {i}"] for i in range(5)] == list(STARS)
        assert found["validation 0"] == "1"


def test_a_column_that_can_be_both_is_refused_until_it_is_settled(tmp_path):
    path = folder(tmp_path, train=[1, 2, 3, 4] * 8, validation=[1, 2])
    with pytest.raises(
        InputError, match=r"train\.csv: line 2: label '1'.*data\.label_type=names or"
    ):
        read(path, STARS)
    assert read(path, STARS, label_type="names")["train 0"] == "1"
    assert read(path, STARS, label_type="indices")["train 0"] == "2"


def test_under_privacy_and_at_nodes_no_row_decides(tmp_path):
    path = folder(tmp_path, train=[1, 2, 3, 4] * 8, validation=[1, 2])
    given = [{"private": True}, {"holder": "server"}, {"holder": "client"}]
    for options in given:
        assert read(path, STARS, **options)["train 0"] == "1"
    folder(tmp_path, train=[0, 1, 2, 3, 4] * 8, validation=[0, 1])
    for options in given[:2]:
        with pytest.raises(InputError, match=r"label '0' is not one of 1, 2.*label_type=indices"):
            read(path, STARS, **options)
    assert read(path, STARS, holder="client")["train 1"] == "1"  # 0 is left out, nothing shifts
    for options in given:
        assert read(path, STARS, label_type="indices", **options)["train 0"] == "1"


def test_a_column_that_mixes_names_and_indices_is_refused(tmp_path):
    path = folder(tmp_path, train=["neg", "pos"] * 10, validation=["neg", "1"])
    with pytest.raises(InputError, match=r"validation\.csv: line 3 the index '1'"):
        read(path, ("neg", "pos"))
    with pytest.raises(InputError, match="label '1' is not one of neg, pos"):
        read(path, ("neg", "pos"), label_type="names")
    folder(tmp_path, train=[0, 5, 1] * 10, validation=[1])
    with pytest.raises(InputError, match=r"the name '5', and in .*the index '0'"):
        read(path, STARS)


@pytest.mark.parametrize(
    ("labels", "column"),
    [
        (("0", "1"), "0 1 1 0"), (("1", "0"), "0 1 1 0"), (("1", "2"), "1 2"), (("1", "2"), "0 1"),
        (("1", "2"), "1 1"), (("10", "20"), "10 20"), (("10", "20"), "0 1"), (("b", "a"), "a b"),
        (("b", "a"), "0 1"), (("-1", "0", "1"), "-1 0 1"), (("-1", "0", "1"), "0 1 2"),
        (("-1", "0", "1"), "0 1"), (("1.0", "2.0"), "1 2"), (("1.0", "2.0"), "0 1"),
    ],
)  # fmt: skip
def test_against_trying_both_ways(labels, column, tmp_path):
    """Brute force: the way in which every label has a meaning; refused if there are two meanings."""
    rows = column.split()
    whole = [name.removesuffix(".0") for name in labels]
    ways = []
    if all(row in whole for row in rows):
        ways.append([labels[whole.index(row)] for row in rows])
    if all(row in map(str, range(len(labels))) for row in rows):
        ways.append([labels[int(row)] for row in rows])
    path = folder(tmp_path, train=rows * 12)
    if any(a != b for a, b in itertools.combinations(ways, 2)):
        with pytest.raises(InputError, match="can be both"):
            read(path, labels)
    else:
        found = read(path, labels)
        assert [found[f"train {i}"] for i in range(len(rows))] == ways[0]


@pytest.mark.parametrize(
    "label", ["²", "--1", "-1", "١", "01", "9" * 5000, "1_0", " 1", "+1", "1e0"]
)
def test_what_is_no_index(label):
    assert by_index(label, STARS * 10) is None
    assert by_name(label, STARS) is None


def test_what_is_one():
    assert [by_index(x, "abc") for x in ("0", "2", "3")] == [0, 2, None]
    assert [by_name(x, ("false", "true")) for x in ("False", "true", "FALSE")] == [0, 1, None]
    assert label_index("1.0", ("a", "b")) is None  # rows write it as 1
    assert [two_ways(x) for x in (STARS, ("0", "1"), ("1", "0"), ("7", "8"), ("a", "0"))] == [
        True, False, True, False, True,
    ]  # fmt: skip


def splits(names, rows=((0, 1),) * 2):
    features = Features({"text": Value("string"), "label": ClassLabel(names=list(names))})
    return DatasetDict({
        part: Dataset.from_dict(
            {"text": [f"{part} {i}" for i in range(40)], "label": list(labels) * 20}, features
        )
        for part, labels in zip(("train", "validation"), rows, strict=True)
    })  # fmt: skip


def saved(tmp_path, names, **options):
    splits(names, **options).save_to_disk(tmp_path / "saved")
    return str(tmp_path / "saved")


def test_the_classes_of_the_source_are_believed(tmp_path):
    path = saved(tmp_path, ("neg", "pos"))
    for labels in (None, ("neg", "pos"), ("pos", "neg"), ("other", "pos", "neg")):
        found = read(path, labels)
        assert found["train 0"] == "neg"
        assert found["validation 1"] == "pos"


def test_stars_of_a_class_label(tmp_path):
    path = saved(tmp_path, STARS, rows=((0, 1, 2, 3, 4)[:2], (0, 1)))
    assert read(path, STARS)["train 1"] == "2"
    assert read(path, STARS, private=True)["train 0"] == "1"


def test_other_names_for_the_classes_are_not_guessed(tmp_path):
    path = saved(tmp_path, ("neg", "pos"))
    for labels in (("negative", "positive"), ("positive", "negative"), ("neg", "other")):
        with pytest.raises(
            InputError, match=r"data\.labels: .* not what the source calls.*neg, pos"
        ):
            read(path, labels)
    assert read(path, ("bad", "good"), label_type="indices")["train 0"] == "bad"
    with pytest.raises(
        InputError, match=r"validation: row 2: label .pos. is not one of neg, other"
    ):
        read(path, ("neg", "other"), label_type="names")


def test_classes_without_names_are_numbers(tmp_path):
    path = saved(tmp_path, ("0", "1"))
    assert read(path, ("bad", "good"))["train 1"] == "good"


def test_parts_whose_classes_differ(tmp_path):
    train, other = splits(("neg", "pos")), splits(("pos", "neg"))
    mixed = DatasetDict(train=train["train"], validation=other["validation"])
    mixed.save_to_disk(tmp_path / "order")
    assert read(str(tmp_path / "order"), None)["validation 0"] == "pos"  # by name
    third = DatasetDict(train=train["train"], validation=splits(("neg", "so"))["validation"])
    third.save_to_disk(tmp_path / "names")
    with pytest.raises(InputError, match=r"classes of validation \(neg, so\).*train \(neg, pos\)"):
        read(str(tmp_path / "names"), None)


def test_under_privacy_only_a_published_schema_declares_labels(tmp_path):
    """The classes of a file may have been made from its rows, as class_encode_column makes them."""
    path = saved(tmp_path, ("neg", "pos"))
    with pytest.raises(InputError, match=r"needed under privacy.*data\.labels=\[neg,pos\]"):
        read(path, None, private=True)
    settings = DataSettings("mine", path="lab/set")
    tables = read_splits(splits(("neg", "pos")), "hub: lab/set", settings, declares=True)
    assert all(t.declares and t.label_names == ("neg", "pos") for t in tables.parts.values())


def test_label_type_is_one_of_three():
    with pytest.raises(
        InputError, match=r"data\.label_type: 'index' .*choose from auto, indices, na"
    ):
        DataSettings("mine", label_type="index")


def test_at_a_node_a_row_that_made_a_class_leaves_the_others_alone(tmp_path):
    """class_encode_column makes the schema from the rows, in alphabetical order."""
    rows = [{"text": f"text {i}", "label": ("no", "yes")[i % 2]} for i in range(20)]
    digits = [{"text": f"text {i}", "label": "01"[i % 2]} for i in range(20)]
    for k, held in enumerate((rows, digits)):
        found = []
        for more in ([], [{"text": "new", "label": "HIV"}], [{"text": "new", "label": "+"}]):
            path = tmp_path / f"{k}.parquet"
            Dataset.from_list([*held, *more]).class_encode_column("label").to_parquet(path)
            found.append(read(str(path), ("no", "yes"), holder="client", private=True))
        assert found[0] == found[1] == found[2]
        assert [found[0][f"text {i}"] for i in range(2)] == ["no", "yes"]
    with pytest.raises(
        InputError, match="the train part is empty; 21 rows have labels that are not"
    ):
        read(str(path), ("x", "y"), holder="client", private=True, label_type="names")
