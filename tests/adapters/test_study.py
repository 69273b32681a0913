"""The comparison of adapters and heads: every line composes, and is a pair that is allowed."""

from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fedsvd import run
from fedsvd.config import from_config
from fedsvd.settings.model import ADAPTERS, HEADS
from fedsvd.strategies.build import build_strategy
from fedsvd.strategies.pairs import check_pair

STUDY = Path(__file__).resolve().parents[2] / "experiments" / "adapters"


@pytest.mark.parametrize(("file", "setting"), [("adapters", "no_dp"), ("heads", "dp_eps1")])
def test_every_line_of_the_study_composes(file, setting):
    found = []
    with initialize_config_dir(str(run.config_folder()), version_base="1.3"):
        for line in (STUDY / f"{file}.txt").read_text().splitlines():
            _, *overrides = line.split()
            config = compose("config", [f"+experiment={setting}", *overrides])
            settings = from_config(OmegaConf.to_container(config, resolve=True))
            check_pair(settings, build_strategy(settings.strategy), run.config_folder())
            found.append(settings)
    if file == "adapters":
        assert {s.adapter.resolved for s in found} == {*ADAPTERS, "none"} - {"soma"}
    else:
        assert {s.model.head for s in found} == set(HEADS)
