"""Under privacy the rows have no say in which classes there are."""

import pytest

from fedsvd.client.worker import deal
from fedsvd.data.labels import label_index, label_names
from fedsvd.data.sources import Table
from fedsvd.data.task import load_task
from fedsvd.errors import InputError
from fedsvd.settings import DataSettings
from tests.conftest import compose_settings

GOOD = "text,label\n" + "".join(f"text {i},{('neg', 'pos')[i % 2]}\n" for i in range(60))


def folder_of(tmp_path, text=GOOD, name="train.csv"):
    (tmp_path / name).write_text(text)
    return DataSettings("mine", path=str(tmp_path))


@pytest.mark.parametrize("privacy", ["dp_sgd", "client_level"])
def test_labels_are_declared_under_privacy(privacy, tmp_path):
    folder_of(tmp_path)
    given = ["data=folder", f"data.path={tmp_path}", "data.public_size=50", f"privacy={privacy}",
             "partition=iid", "clients.number=3", "partition.min_examples=1"]  # fmt: skip
    with pytest.raises(InputError, match=r"data\.labels: needed under privacy.*data\.labels=\["):
        deal(compose_settings(*given))
    task, _ = deal(compose_settings(*given, "data.labels=[neg,pos,HIV-positive]"))
    assert task.label_names == ("neg", "pos", "HIV-positive")
    found, _ = deal(compose_settings(*given, "privacy=none"))
    assert found.label_names == ("neg", "pos")


def test_a_row_cannot_create_or_reorder_a_class(tmp_path):
    settings = DataSettings("mine", path=str(tmp_path), labels=("pos", "neg"))
    folder_of(tmp_path)
    before = load_task(settings, 0, private=True)
    folder_of(tmp_path, GOOD + "a,HIV-positive\n")
    with pytest.raises(
        InputError, match=r"train\.csv: line 62: label 'HIV-positive' is not one of"
    ):
        load_task(settings, 0, private=True)
    assert before.label_names == ("pos", "neg")


def test_the_schema_of_a_data_set_of_the_hub_is_a_declaration():
    tables = {"train": Table([("a",)], [0], ("negative", "positive"))}
    names = label_names(DataSettings("mine", path="lab/set"), tables, "hub", private=True)
    assert names == ("negative", "positive")


def test_training_rows_do_not_decide_whether_validation_labels_are_allowed(tmp_path):
    """That training lacks a label is a fact of private rows; an error would tell it."""
    folder_of(tmp_path)
    folder_of(tmp_path, "text,label\nnew,rare\n", "validation.csv")
    settings = DataSettings("mine", path=str(tmp_path), labels=("neg", "pos", "rare"))
    assert load_task(settings, 0, private=True).classes == 3
    with pytest.raises(InputError, match="is not in training"):
        load_task(settings, 0)


def own(folder, *more):
    return compose_settings(
        "data=folder", f"data.path={folder}", "data.labels=[neg,pos]", "data.public_size=300",
        "partition=own", "partition.holder=0", "privacy.secure_noise=true",
        "privacy.diagnostics=false", *more,
    )  # fmt: skip


def test_at_a_node_an_unknown_label_is_left_out_and_told_to_the_owner_alone(tmp_path, capsys):
    folder_of(tmp_path)
    expected, parts = deal(own(tmp_path))
    assert capsys.readouterr().err == ""
    folder_of(tmp_path, GOOD.replace("text,label\n", "text,label\na,HIV-positive\n"))
    task, again = deal(own(tmp_path))
    assert task.texts == expected.texts
    assert [p.tolist() for p in again] == [p.tolist() for p in parts]
    assert task.classes == 2
    told = capsys.readouterr().err
    assert "1 rows have labels that are not among data.labels" in told
    assert "HIV" not in told


def test_the_number_of_rows_at_a_node_decides_nothing_under_privacy(tmp_path):
    """A bound on it would tell the server whether one row more is there."""
    for rows in (1, 9, 10):
        folder_of(tmp_path, "text,label\n" + "".join(f"text {i},neg\n" for i in range(rows)))
        _, parts = deal(own(tmp_path, "partition.min_examples=10"))
        assert len(parts[0]) == rows


@pytest.mark.parametrize(
    ("label", "index"),
    [("neg", 0), ("1", 1), (1, 1), ("2", None), ("-1", None), ("²", None), ("١", None), ("", None)],
)
def test_labels_are_names_or_indices(label, index):
    assert label_index(label, ("neg", "pos")) == index


def test_a_superscript_is_a_name_like_any_other():
    tables = {"all": Table([("a",), ("b",), ("c",)], ["²", "10", "9"])}
    assert label_names(DataSettings("mine"), tables, "here", private=False) == ("9", "10", "²")
