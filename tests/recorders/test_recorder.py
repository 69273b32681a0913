"""Recorders work on plain records: no run, no model, no client stands behind these."""

import html
import io
import json
import re
from dataclasses import replace
from pathlib import Path

import pytest

from fedsvd.files import clean
from fedsvd.privacy.ledger import Ledger
from fedsvd.privacy.plan import make_plan
from fedsvd.recorders import ModelRecord, Recorder, RoundRecord, Start, Summary, TaskRecord
from fedsvd.recorders.build import make_recorder
from fedsvd.recorders.recorder import FileRecorder, Recorders
from fedsvd.recorders.report import write_report
from fedsvd.recorders.screen import Screen
from tests.conftest import compose_settings

LEDGER = {"clients": [{
    "client": k, "examples": 50, "accounted_rate": 0.3, "rounds": 1, "rounds_bound": 1, "steps": 2,
    "noise_multiplier": 2.0, "epsilon": 0.5,
} for k in range(2)]}  # fmt: skip


def start(*overrides: str) -> Start:
    settings = compose_settings(
        "clients.number=2", "clients.per_round=1", "rounds=2", "privacy.accountant=rdp", *overrides
    )
    task = TaskRecord("films", "a test", ("bad", "good"), 100, 20, 10, 1, ((30, 20), (0, 0)))
    model = ModelRecord("folder", 1000, 10, "cpu", "fp32")
    return Start(settings, make_plan(settings, [50, 50]), 2, task, model, LEDGER)


def rounds() -> list[RoundRecord]:
    zero = {"round": 0, "clients": [], "accuracy": 0.5, "loss": 0.7, "seconds": 0.1}
    one = {
        "round": 1, "clients": [1], "sat_out": [0], "failed": {"1": "did not answer"},
        "bytes_up": 10, "bytes_down": 20, "train_loss": float("nan"), "reports": {},
        "epsilon": {"0": 0.0, "1": 0.5}, "epsilon_max": 0.5, "seconds": 1.0,
    }  # fmt: skip
    two = {**one, "round": 2, "failed": {}, "sat_out": [], "accuracy": 0.75, "loss": 0.6}
    return [RoundRecord(m["round"], 2, m, LEDGER) for m in (zero, one, two)]


def summary() -> Summary:
    values = {
        "task": "films", "strategy": "fedsvd", "model": "m", "adapter": "lora", "head": "trained",
        "seed": 0, "rounds_completed": 2, "accuracy": 0.75, "best_accuracy": 0.75, "loss": 0.6,
        "test_accuracy": None, "epsilon_target": 1.0, "epsilon_max": 0.5, "delta": 1e-5,
        "bytes_up": 20, "bytes_down": 40, "seconds": 2.0, "device": "cpu", "precision": "fp32",
        "state_digest": "ab" * 32, "singular_values": {"layer": [2.0, 1.0]},
    }  # fmt: skip
    return Summary(values, [r.metrics for r in rounds()], LEDGER)


def test_the_ledger_on_the_disk_is_the_whole_ledger_after_every_round(tmp_path):
    settings = compose_settings(
        "clients.number=4", "clients.per_round=2", "rounds=3", "privacy.accountant=rdp"
    )
    ledger = Ledger(make_plan(settings, [50] * 4))
    recorder = FileRecorder(tmp_path, "")
    recorder.start(replace(start(), ledger=ledger.as_dict()))

    def check(given):
        fresh = Ledger(ledger.plan, {k: list(v) for k, v in ledger.events.items()})
        assert fresh.as_dict() == {k: v for k, v in given.items() if k != "published"}
        told = json.dumps(clean(given), indent=2) + "\n"
        assert (tmp_path / "privacy.json").read_text() == told

    check(ledger.as_dict())
    for number, asked in ((1, [0, 2]), (2, [2, 3]), (3, [0, 1])):
        ledger.record_round(number, asked, {asked[0]: 1})
        recorder.round(replace(rounds()[0], ledger=ledger.as_dict()))
        check(ledger.as_dict())
        ledger.record_mean(number, asked[:1])
        spent = ledger.as_dict()
        assert spent["epsilon_max"] == max(ledger.epsilons()) == ledger.epsilon_max()
        assert [c["epsilon"] for c in spent["clients"]] == [ledger.epsilon(k) for k in range(4)]
        recorder.halt(spent)
        check(spent)
    ledger.load_events({"1": ledger.events_as_dict()["2"]})
    last = {**ledger.as_dict(), "published": {"clients": {}}}
    recorder.halt(last)
    check(last)


def play(recorder: Recorder) -> None:
    recorder.start(start())
    for record in rounds():
        recorder.round(record)
    recorder.finish(summary())


def test_the_recorder_of_the_docs_works_on_records_alone(capsys):
    page = Path(__file__).parents[2] / "docs" / "architecture.md"
    (code,) = re.findall(r"```python\n(.*?)```", page.read_text(), re.S)
    assert len(code.split("class ")[1].splitlines()) <= 11
    names: dict = {}
    exec(code, names)
    recorder = names["Curve"]()
    play(recorder)
    assert recorder.points == [(0, 0.5, None), (2, 0.75, 0.5)]
    assert "abab" in capsys.readouterr().out


@pytest.mark.report
def test_the_files_hold_what_the_records_say(tmp_path):
    play(FileRecorder(tmp_path, "seed: 0\n"))
    lines = [json.loads(x) for x in (tmp_path / "metrics.jsonl").read_text().splitlines()]
    expected = [dict(r.metrics) for r in rounds()]
    for metrics in expected[1:]:
        metrics["train_loss"] = None  # NaN is not JSON
    assert lines == expected
    assert json.loads((tmp_path / "privacy.json").read_text()) == LEDGER
    assert json.loads((tmp_path / "summary.json").read_text()) == summary().values
    assert (tmp_path / "config.yaml").read_text() == "seed: 0\n"
    assert (tmp_path / "report.html").read_text().count("<svg") == 4


def test_a_run_that_goes_on_keeps_the_rounds_before_and_no_others(tmp_path):
    play(FileRecorder(tmp_path, ""))
    whole = (tmp_path / "metrics.jsonl").read_bytes()
    first = whole.index(b"\n") + 1
    again = FileRecorder(tmp_path, "", first)
    again.start(start())
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole[:first]
    for record in rounds()[1:]:
        again.round(record)
    assert (tmp_path / "metrics.jsonl").read_bytes() == whole
    FileRecorder(tmp_path, "").start(start())
    assert (tmp_path / "metrics.jsonl").read_bytes() == b""


def test_a_run_that_stops_early_leaves_what_was_spent_and_no_summary(tmp_path):
    recorder = FileRecorder(tmp_path, "")
    recorder.start(start())
    recorder.halt({"clients": [], "epsilon_max": 0.9})
    assert json.loads((tmp_path / "privacy.json").read_text())["epsilon_max"] == 0.9
    assert not (tmp_path / "summary.json").exists()


def test_several_recorders_get_everything_in_order():
    class Told(Recorder):
        def __init__(self, name, log):
            self.name, self.log = name, log

        def start(self, start):
            self.log.append((self.name, "start", start.rounds))

        def round(self, record):
            self.log.append((self.name, "round", record.round))

        def finish(self, summary):
            self.log.append((self.name, "finish", summary.values["accuracy"]))

    log: list = []
    play(Recorders([Told("a", log), Told("b", log)]))
    assert log[::2] == [("a", *x[1:]) for x in log[1::2]]
    assert [x[1:] for x in log[::2]] == [
        ("start", 2), ("round", 0), ("round", 1), ("round", 2), ("finish", 0.75)
    ]  # fmt: skip


def test_the_screen_prints_the_records(tmp_path):
    stream = io.StringIO()
    play(Screen(tmp_path, stream))
    text = " ".join(stream.getvalue().split())
    for words in (
        "films from a test: 100 train, 20 validation, 10 test (1 duplicates dropped)",
        "10 of 1,000 parameters", "bad 60% good 40%", "on its own machine",
        "round 0/2 loss 0.7000 accuracy 0.5000", "client 1 did not answer; left out",
        "client 0 has spent its budget; sits out", "0.7500 (best 0.7500)", "abababababababab",
    ):  # fmt: skip
        assert words in text, words


def test_the_report_draws_what_the_summary_holds(tmp_path):
    write_report(tmp_path / "report.html", start(), summary())
    page = (tmp_path / "report.html").read_text()
    assert "75.0 %" in page
    assert "Singular values" in page
    none = {**summary().values, "singular_values": {}}
    write_report(tmp_path / "report.html", start(), Summary(none, summary().history, LEDGER))
    assert "Singular values" not in (tmp_path / "report.html").read_text()


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        ([], "from the run's seed: repeatable, do not publish this model"),
        (["privacy.secure_noise=true"], "from the operating system"),
        (["privacy=none"], None),
    ],
)
def test_header_and_report_say_where_the_noise_is_from(tmp_path, overrides, told):
    stream = io.StringIO()
    Screen(tmp_path, stream).start(start(*overrides))
    header = " ".join(stream.getvalue().split())
    write_report(tmp_path / "report.html", start(*overrides), summary())
    page = html.unescape((tmp_path / "report.html").read_text())
    if told is None:
        assert "noise from" not in header
        assert "Noise:" not in page
    else:
        assert f"noise {told}" in header
        assert f"Noise: {told}<" in page


@pytest.mark.parametrize("name", ["files", "tensorboard"])
def test_the_configured_recorders_work_on_records_alone(name, tmp_path):
    settings = compose_settings(f"recorder={name}").recorder
    play(make_recorder(settings, tmp_path, "", Screen(tmp_path, io.StringIO())))
    assert (tmp_path / "summary.json").exists()
    assert bool(list(tmp_path.glob("tensorboard/*"))) == (name == "tensorboard")


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["data.label_texts=null", "model.head=frozen_random"], True),
        (["model.head=frozen_random"], False),
    ],
)
def test_the_screen_says_when_training_texts_stand_for_public_ones(overrides, told, tmp_path):
    stream = io.StringIO()
    screen = Screen(tmp_path, stream)
    screen.start(start("adapter=gradient", "privacy=none", *overrides))
    screen.close()
    found = " ".join(stream.getvalue().split())
    assert ("texts of training with their labels, which stand for public ones" in found) == told


@pytest.mark.parametrize(
    ("overrides", "told"),
    [
        (["adapter=eva", "privacy=none"], True),
        (["adapter=eva", "privacy=none", "data.public=30"], False),
        (["adapter=lora", "privacy=none"], False),
    ],
)
def test_the_screen_says_when_validation_texts_stand_for_public_ones(overrides, told, tmp_path):
    stream = io.StringIO()
    screen = Screen(tmp_path, stream)
    screen.start(start(*overrides))
    screen.close()
    found = " ".join(stream.getvalue().split())
    assert ("20 texts of validation, which stand for public ones (data.public=0)" in found) == told
