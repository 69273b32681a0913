"""python -m fedsvd.results: groups, intervals, paired differences, against closed forms."""

import csv
import json
import math

import pytest
from omegaconf import OmegaConf
from scipy import stats

from fedsvd.results.__main__ import main
from fedsvd.results.collect import find_runs, group_runs
from fedsvd.results.compare import compare, estimate


def put(folder, seed, accuracy, epsilon=1.0, strategy="fedsvd.strategies.FFA", **more):
    """A run folder as far as results read it."""
    folder.mkdir(parents=True)
    config = {
        "seed": seed, "engine": {"name": "inline", "threads": seed}, "data": {"limit": None},
        "strategy": {"_target_": strategy, **({"period": 1} if "SVD" in strategy else {})},
        "privacy": {"epsilon": epsilon, "delta": 1e-5}, **more,
    }  # fmt: skip
    OmegaConf.save(OmegaConf.create(config), folder / "config.yaml")
    summary = {
        "seed": seed, "accuracy": accuracy, "test_accuracy": accuracy - 0.01,
        "epsilon_target": epsilon, "epsilon_max": None if epsilon is None else 0.99 * epsilon,
        "state_digest": "0" * 64, "bytes_up": 10**6 * (1 + len(strategy)), "bytes_down": 10**6,
    }  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(summary))
    (folder / "metrics.jsonl").write_text("{}\n")


def test_mean_and_interval_against_scipys_own():
    values = [0.71, 0.74, 0.70, 0.77]
    found = estimate(values)
    low, high = stats.ttest_1samp(values, 0).confidence_interval(0.95)
    assert math.isclose(found.mean - found.half, low)
    assert math.isclose(found.mean + found.half, high)
    # By hand: t_{0.975, 1} = tan(0.475 pi) for one degree of freedom (Cauchy).
    two = estimate([1.0, 2.0])
    assert math.isclose(two.half, math.tan(0.475 * math.pi) * math.sqrt(0.5) / math.sqrt(2))
    assert estimate([0.5]).half is None
    assert estimate([]) is None


@pytest.fixture
def sweep(tmp_path):
    """Two strategies at two budgets; seeds partly matched."""
    accuracy = {"FFA": [0.70, 0.75, 0.71], "FedSVD": [0.72, 0.76, 0.74]}
    for name, values in accuracy.items():
        for epsilon in (1.0, 3.0):
            for seed, value in enumerate(values):
                put(
                    tmp_path / "sweep" / f"{name}{epsilon}s{seed}", seed, value + epsilon / 100,
                    epsilon, f"fedsvd.strategies.{name}",
                )  # fmt: skip
    put(tmp_path / "sweep/extra", 7, 0.99, 1.0, "fedsvd.strategies.FedSVD")  # no match in FFA
    return tmp_path / "sweep"


def test_groups_differ_in_more_than_the_seed(sweep):
    runs, unfinished = find_runs(sweep)
    assert (len(runs), unfinished) == (13, [])
    names = [g.name for g in group_runs(runs)]
    assert names == [
        f"strategy={s}, privacy.epsilon={e}" for s in ("FFA", "FedSVD") for e in (1, 3)
    ]


def test_differences_are_over_matched_seeds(sweep):
    rows = compare(group_runs(find_runs(sweep)[0]), "strategy=FFA, privacy.epsilon=1")
    assert rows[0].difference is None
    found = rows[2].difference  # FedSVD at epsilon 1, whose seed 7 has no partner
    t = stats.ttest_rel([0.72, 0.76, 0.74], [0.70, 0.75, 0.71])
    low, high = t.confidence_interval(0.95)
    assert found.n == 3
    assert math.isclose(found.mean - found.half, low)
    assert math.isclose(found.mean + found.half, high)
    assert rows[2].figure.n == 4
    assert rows[1].epsilon_max == pytest.approx(2.97)


def test_the_command_prints_and_writes(sweep, tmp_path, capsys):
    put(sweep / "<b>", 0, 0.8, None, "fedsvd.strategies.<i>")
    (sweep / "half").mkdir()
    (sweep / "half/config.yaml").write_text("seed: 3\n")
    (sweep / "half/metrics.jsonl").write_text("{}\n")
    table, figure = tmp_path / "t.csv", tmp_path / "f.png"
    given = ["--baseline", "FFA, privacy.epsilon=1", "--csv", str(table), "--figure", str(figure)]
    assert main([str(sweep), *given]) == 0
    told = capsys.readouterr().out
    assert "left out, unfinished" in told
    assert "0.7300 ± " in told
    with table.open() as file:
        rows = {row["name"]: row for row in csv.DictReader(file)}
    assert float(rows["strategy=FedSVD, privacy.epsilon=1"]["difference_mean"]) == pytest.approx(
        0.02
    )
    assert figure.read_bytes().startswith(b"\x89PNG")
    page = (sweep / "report.html").read_text()
    assert "<svg" in page
    assert "&lt;b&gt;" in page
    assert "<b>" not in page
    assert "<i>" not in page


@pytest.mark.parametrize(
    ("given", "message"),
    [
        (["nowhere"], "nowhere: is not a folder"),
        (["."], "holds no finished run"),
        (["sweep", "--baseline", "epsilon"], "fits more than one group"),
        (["sweep", "--baseline", "strategy=FedSDV, privacy.epsilon=1"], "did you mean"),
        (["sweep", "--figure", "x.pdf"], "must end in .svg or .png"),
        (["broken"], "is not a run of this software"),
    ],
)
def test_bad_input(sweep, given, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    if given[0] == "broken":
        put(tmp_path / "broken", 0, 0.5)
        (tmp_path / "broken/summary.json").write_text("{")
    if given == ["."]:
        monkeypatch.chdir(tmp_path.parent)
        (tmp_path.parent / "empty").mkdir(exist_ok=True)
        given = ["empty"]
    assert main(given) == 2
    told = capsys.readouterr().err
    assert told.startswith("error: ")
    assert message in told
    assert len(told.splitlines()) == 1
    assert not (sweep / "report.html").exists()
