"""The lists of the recorded studies: every line composes, is an allowed pair; none is forgotten."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from experiments.each import held
from experiments.table import add
from fedsvd import run
from fedsvd.config import from_config
from fedsvd.settings.model import ADAPTERS, HEADS
from fedsvd.strategies.build import build_strategy
from fedsvd.strategies.pairs import check_pair
from fedsvd.strategies.use import check_use

STUDIES = Path(__file__).resolve().parents[1] / "experiments"


def settings_of(file, setting):
    """The settings of every line of a study's list, by the line's name."""
    found = {}
    with initialize_config_dir(str(run.config_folder()), version_base="1.3"):
        for line in (STUDIES / file).read_text().splitlines():
            name, *overrides = line.split()
            config = compose("config", [f"+experiment={setting}", *overrides])
            settings = from_config(OmegaConf.to_container(config, resolve=True))
            strategy = build_strategy(settings.strategy)
            check_use(settings, strategy)
            check_pair(settings, strategy, run.config_folder())
            assert name not in found
            found[name] = settings
    return found


@pytest.mark.parametrize(
    ("file", "setting"),
    [
        ("adapters/adapter_options.txt", "no_dp"),
        ("adapters/head_options.txt", "dp_eps1"),
        ("strategies/options.txt", "dp_eps3"),
    ],
)
def test_every_option_composes(file, setting):
    assert settings_of(file, setting)


def test_the_studies_hold_every_adapter_and_every_head():
    adapters = settings_of("adapters/adapters.txt", "dp_eps3").values()
    assert {s.adapter.resolved for s in adapters} == {*ADAPTERS, "none"} - {"soma"}
    heads = settings_of("adapters/heads.txt", "dp_eps1").values()
    assert {s.model.head for s in heads} == set(HEADS)


def test_the_study_of_strategies_holds_every_strategy():
    found = settings_of("strategies/variants.txt", "dp_eps3")
    configured = {p.stem for p in (run.config_folder() / "strategy").glob("*.yaml")}
    assert configured <= found.keys()


def test_a_recorded_run_is_not_made_again(tmp_path):
    results, folder = tmp_path / "results.jsonl", tmp_path / "run"
    assert held(results) == set()
    folder.mkdir()
    (folder / "summary.json").write_text('{"accuracy": 0.5}')
    add(results, folder, "no_dp", "ffa", 1)
    assert held(results) == {("no_dp", "ffa", 1)}
