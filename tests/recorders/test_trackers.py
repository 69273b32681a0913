"""Trackers with the real libraries, offline; what is private reaches none of them, and no report."""

import csv
import importlib.util
import time
from dataclasses import replace

import pytest

from fedsvd.errors import InputError
from fedsvd.recorders import Recorder, RoundRecord, Summary
from fedsvd.recorders.build import check_recorders, make_recorder, sweep_of
from fedsvd.recorders.recorder import Recorders
from fedsvd.recorders.report import write_report
from tests.conftest import compose_settings
from tests.recorders.test_recorder import LEDGER, rounds, start, summary

LOSS, NORM, COUNT = 0.31415926, 27.182818, 4_711_013  # of private rows; nowhere else
CLIENT = {**LEDGER["clients"][0], "examples": COUNT}
SECRET = {"clients": [{**CLIENT, "client": k} for k in range(2)]}


def missing(*modules):
    absent = [m for m in modules if importlib.util.find_spec(m) is None]
    return pytest.mark.skipif(bool(absent), reason=f"needs {', '.join(absent)}")


class Kept(Recorder):
    """A recorder of one's own."""

    told: list = []  # noqa: RUF012 -- the test looks at it

    def __init__(self, folder, wanted, other=1):
        self.told[:] = [folder, wanted]

    def start(self, start):
        self.told.append(start)

    def round(self, record):
        self.told.append(record)

    def finish(self, summary):
        self.told.append(summary)


def private_start(*overrides):
    found = start(*overrides)
    plan = replace(
        found.plan, clients=tuple(replace(c, examples=COUNT) for c in found.plan.clients)
    )
    task = replace(found.task, train=COUNT, clients=((COUNT, 1), (1, COUNT)))
    return replace(found, plan=plan, task=task, ledger=SECRET)


def play(recorder, *overrides, close=True):
    """Play a run whose clients report on private rows."""
    first = private_start(*overrides)
    recorder.start(first)
    told = {"train_loss": LOSS, "reports": {"1": {"grad_norm_quantiles": [NORM] * 3}},
            "update_norms": [NORM], "failed": {"1": f"ValueError: {COUNT}"}}  # fmt: skip
    history = [{**r.metrics, **told} for r in rounds()]
    for metrics in history:
        recorder.round(RoundRecord(metrics["round"], 2, metrics, SECRET))
    recorder.finish(Summary(summary().values, history, SECRET))
    if close:
        recorder.close()


def built(folder, *overrides):
    settings = compose_settings(*overrides).recorder
    check_recorders(settings)
    return make_recorder(settings, folder, "", Recorders([]))


CLOSED, OPEN = ["privacy.diagnostics=false"], ["privacy.diagnostics=true"]


@pytest.mark.report
def test_csv_and_a_recorder_of_ones_own_get_what_is_public(tmp_path):
    own = ["recorder.name=[csv,files]", f"recorder._target_={__name__}.Kept", "+recorder.wanted=7"]
    for overrides in (CLOSED, OPEN, ["privacy=none"]):
        folder = tmp_path / overrides[0]
        play(built(folder, *own, *overrides), *overrides)
        with (folder / "rounds.csv").open() as file:
            table = list(csv.DictReader(file))
        assert [row["round"] for row in table] == ["0", "1", "2"]
        assert [row["accuracy"] for row in table] == ["0.5", "", "0.75"]
        assert ("train_loss" in table[0]) == (overrides is not CLOSED)
        assert Kept.told[:2] == [folder, 7]
        text, page = repr(Kept.told[2:]), (folder / "report.html").read_text()
        assert (str(LOSS) in text) == (str(NORM) in text) == (overrides is not CLOSED)
        assert (str(COUNT) in text) == (overrides == ["privacy=none"]) or overrides is OPEN
        counts = (str(COUNT) in page) or (f"{COUNT:,}" in page)
        assert counts == (overrides == ["privacy=none"])
        assert ("Gradient norms" in page) == (overrides is not CLOSED)


def test_a_count_in_what_failed_is_all_that_diagnostics_let_through(tmp_path):
    play(built(tmp_path, f"recorder._target_={__name__}.Kept", "+recorder.wanted=7"), *OPEN)
    first, *records, last = Kept.told[2:]
    assert {c.examples for c in first.plan.clients} == {0}
    assert first.task.train == 0
    assert str(COUNT) not in repr([r.ledger for r in records]) + repr(last.ledger)


@missing("wandb")
def test_wandb_offline(tmp_path, monkeypatch):
    monkeypatch.setenv("WANDB_DIR", str(tmp_path / "elsewhere"))
    for overrides in (CLOSED, OPEN):
        folder = tmp_path / "sweep" / overrides[0]
        folder.mkdir(parents=True)
        (tmp_path / "sweep" / "multirun.yaml").touch()
        play(built(folder, "recorder=wandb", *overrides), *overrides)
        (log,) = folder.glob("wandb/offline-run-*/*.wandb")
        for _ in range(200):  # W&B's own process writes the file, soon after the run's end
            if b"epsilon_max" in (data := log.read_bytes()):
                break
            time.sleep(0.1)
        for word in (b"accuracy", b"epsilon_max", b"abababab", b"privacy.diagnostics"):
            assert word in data
        assert f"{tmp_path.name}/sweep".encode() in data
        whole = b"".join(p.read_bytes() for p in folder.glob("wandb/**/*") if p.is_file())
        assert str(COUNT).encode() not in whole
        assert str(NORM).encode() not in whole
        assert (str(LOSS).encode() in whole) == (overrides is OPEN)


@missing("mlflow", "sqlalchemy", "alembic")
def test_mlflow_in_a_database(tmp_path, monkeypatch):
    monkeypatch.setenv("MLFLOW_DISABLE_TELEMETRY", "true")
    (tmp_path / "multirun.yaml").touch()
    store = f"sqlite:///{tmp_path / 'all.db'}"
    for number, overrides in enumerate((CLOSED, OPEN)):
        play(
            built(tmp_path / str(number), "recorder=mlflow", f"recorder.store={store}", *overrides),
            f"recorder.store={store}", *overrides,
        )  # fmt: skip
    from mlflow.tracking import MlflowClient

    client = MlflowClient(tracking_uri=store)
    held = client.get_experiment_by_name("fedsvd")
    group = f"{tmp_path.parent.name}/{tmp_path.name}"
    found = client.search_runs(
        [held.experiment_id], f"tags.`fedsvd.group` = '{group}'", order_by=["start_time"]
    )
    assert [run.info.status for run in found] == ["FINISHED"] * 2
    for run, overrides in zip(found, (CLOSED, OPEN), strict=True):
        history = client.get_metric_history(run.info.run_id, "accuracy")
        assert [(m.step, m.value) for m in history] == [(0, 0.5), (2, 0.75)]
        assert run.data.params["privacy.diagnostics"] == str(overrides is OPEN)
        assert run.data.tags["fedsvd.state_digest"] == "ab" * 32
        assert ("train_loss" in run.data.metrics) == (overrides is OPEN)
        assert not {COUNT, NORM} & set(run.data.metrics.values())


def test_a_table_of_a_run_that_goes_on_keeps_the_rounds_before(tmp_path):
    settings = compose_settings("recorder=csv").recorder
    make = lambda resumed: make_recorder(settings, tmp_path, "", Recorders([]), resumed)  # noqa: E731
    play(make(None))
    whole = (tmp_path / "rounds.csv").read_bytes()
    again = make({"metrics": {"bytes": 0}})
    again.start(start())
    again.round(rounds()[1])
    told = (tmp_path / "rounds.csv").read_text().splitlines()
    assert [line.split(",")[0] for line in told] == ["round", "0", "1"]
    assert whole.decode().startswith(told[0])


@pytest.mark.parametrize(
    ("given", "message"),
    [
        ("recorder._target_=fedsvd.errors.InputError", "is not a recorder"),
        (f"recorder._target_={__name__}.Kept", "recorder.wanted: is missing"),
        ("recorder._target_=Kept", "the import path of a class"),
        ("recorder.name=[csv,csv]", "no two of them equal"),
        ("recorder.name=[csv,wandbb]", "did you mean 'wandb'"),
        ("recorder.mode=on", "recorder.mode"),
    ],
)
def test_what_is_wrong_with_a_recorder_is_said_before_work(given, message):
    with pytest.raises(InputError, match=message):
        check_recorders(compose_settings(given).recorder)


def test_an_option_that_a_recorder_does_not_take():
    given = [f"recorder._target_={__name__}.Kept", "+recorder.wanted=1", "+recorder.othre=1"]
    with pytest.raises(InputError, match=r"did you mean 'other'"):
        check_recorders(compose_settings(*given).recorder)


def test_a_run_that_is_no_trial_has_no_group(tmp_path):
    assert sweep_of(tmp_path) is None


def test_the_report_alone_is_behind_the_gate_too(tmp_path):
    page = tmp_path / "report.html"
    write_report(
        page, private_start(*CLOSED), Summary(summary().values, [rounds()[0].metrics], SECRET)
    )
    assert "not shown" in page.read_text()
    assert f"{COUNT}" not in page.read_text()
