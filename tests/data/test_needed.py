"""One's own data: it runs with what one command gives, or one error lists all that it lacks."""

import pytest

from fedsvd.data.needed import check_needed
from fedsvd.errors import InputError
from fedsvd.run import main
from tests.conftest import compose_settings
from tests.tiny import WORDS

KEYS = ("data.path (", "data.labels (", "data.public_size (", "data.label_texts (")


@pytest.fixture
def file(tmp_path):
    rows = [f"the {WORDS[i % 12]} film number {i},{'yes' if i % 2 else 'no'}" for i in range(240)]
    path = tmp_path / "mine.csv"
    path.write_text("text,label\n" + "\n".join(rows) + "\n")
    return path


@pytest.mark.parametrize(
    ("given", "lacks"),
    [
        ([], "path labels public_size label_texts"),
        (["data.path={file}"], "labels public_size label_texts"),
        (["data.path={file}", "privacy=none"], "label_texts"),
        (["data.path={file}", "privacy=client_level"], "labels label_texts"),
        (["data.path={file}", "model.head_init=zeros"], "labels public_size"),
        (["data.path={file}", "model.head=etf", "data.labels=[no,yes]"], "public_size"),
        (["data.path={file}", "privacy.public_counts=true", "data.labels=[no,yes]"], "label_texts"),
        (["data.path={file}", "data.labels=[no,yes]", "model.head=frozen_texts",
          "data.public_size=200"], "label_texts"),
        (["data.hub=owner/name", "data.label_texts=[[a],[b]]"], "public_size"),
        (["data.path={file}", "data.labels=[no,yes]", "data.public_size=200",
          "data.label_texts=[[a],[b]]"], ""),
        (["data.path={file}", "privacy=none", "model.head_init=random"], ""),
    ],
)  # fmt: skip
def test_all_that_is_missing_is_told_at_once(given, lacks, file):
    settings = compose_settings("data=folder", *(g.format(file=file) for g in given))
    if not lacks:
        check_needed(settings)
        return
    with pytest.raises(InputError) as caught:
        check_needed(settings)
    told = str(caught.value)
    assert [k for k in KEYS if k in told] == [f"data.{name} (" for name in lacks.split()]
    assert "\n" not in told


@pytest.mark.parametrize("name", ["nowhere", "no/such.csv", "a/b/c", "./x/y", "~/no-such/x"])
def test_a_path_that_is_nowhere_is_told_before_all_else(name, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    with pytest.raises(InputError) as caught:
        check_needed(compose_settings("data=folder", f"data.path='{name}'"))
    assert str(caught.value) == f"data.path: {name!r} does not exist"


def test_the_example_that_it_gives_is_enough(file):
    with pytest.raises(InputError) as caught:
        check_needed(compose_settings("data=folder", f"data.path={file}"))
    example = str(caught.value).split("For example: ")[1].replace("=N", "=200").replace("'", "")
    more = [f"data.{part}" for part in f" {example}".split(" data.")[1:]]
    check_needed(compose_settings("data=folder", f"data.path={file}", *more))


def test_texts_for_each_label(file):
    settings = compose_settings(
        "data=folder", f"data.path={file}", "data.labels=[no,yes]", "data.public_size=200",
        "data.label_texts=[[a]]",
    )  # fmt: skip
    with pytest.raises(InputError, match=r"data\.label_texts: 1 lists of texts for 2 labels"):
        check_needed(settings)


def test_a_quickstart_on_ones_own_file(file, tmp_path, monkeypatch, capfd):
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("sys.argv", ["fedsvd"])
    given = ["+experiment=quickstart", "data=folder", f"data.path={file}", "rounds=1"]
    assert main([*given, "training.batch_size=4", "hydra.run.dir=out"]) == 0, capfd.readouterr().err
    assert (tmp_path / "out" / "summary.json").exists()


def test_names_of_sources():
    assert compose_settings("data=folder", "data.path=a/b.csv").data.name == "a/b.csv"
    assert compose_settings("data=folder", "data.hub=owner/name").data.name == "owner/name"
    assert compose_settings("data=folder").data.name == "own"
