"""What Hydra says in its own words, told in ours: the key, what was found, what to write."""

import dataclasses
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from omegaconf import OmegaConf

from fedsvd.composing import config_folder, explain
from fedsvd.settings import Settings

TOLD = [
    ("data=nope", "data: 'nope' is not allowed; choose from folder, hellaswag, mnli, "
     "multiemo, newsgroups, qnli, qqp, rotten_tomatoes, snli, squad_choice, squad_pairs, squad_qa, "
     "sst2, vader, vitaminc"),
    ("privacy=dp-sgd", "privacy: 'dp-sgd' is not allowed (did you mean 'dp_sgd'?); choose from "
     "client_level, dp_sgd, none"),
    ("hydra/launcher=rai", "hydra/launcher: 'rai' is not allowed (did you mean 'ray'?); choose from "
     "basic, ray"),
    ("+experiment=paper/sst", "(did you mean 'paper/sst2'?)"),
    ("experiment=quickstart", "experiment: takes a plus sign, as it adds to the defaults: "
     "+experiment=quickstart"),
    ("experiment=paper/qnl", "+experiment=paper/qnli"),
    ("+data=folder", "data: is chosen already; leave the plus sign out: data=folder"),
    ("+seed=1", "seed: is there already; leave the plus sign out"),
    ("engine.workers=2", "engine.workers: the chosen engine has no such key; use engine=ray"),
    ("partition=iid partition.alpha=1", "partition.alpha: the chosen partition has no such key; use "
     "partition=dirichlet or partition=flower or partition=quantity"),
    ("strategy.server.lr=2", "use strategy=fedadam or strategy=fedavgm or strategy=fedyogi or "
     "strategy=mfac, or +strategy.server.lr=VALUE if the class takes it"),
    ("strategy.xyz=2", "an option that its class takes needs a plus sign: +strategy.xyz=VALUE"),
    ("strategy.peroid=2", "strategy.peroid: there is no such key (did you mean strategy.period?)"),
    ("lr=1", "lr: there is no such key (did you mean training.lr?)"),
    ("epsilon=1", "epsilon: there is no such key (did you mean privacy.epsilon?)"),
    ("datta=sst2", "datta: there is no such key (did you mean data?)"),
    ("data@x=sst2", "data@x: there is no such key (did you mean data?)"),
    ("~data.nope", "~data.nope: there is nothing of that name to take out"),
    ("seed=1,2", "seed: '1,2' may mean three things"),
    ("hydra.job.chdir=maybe", "hydra.job.chdir: value 'maybe' is not a valid bool"),
    ("hydra.launcher.foo=2", "hydra.launcher.foo: there is no such key"),
    ("seed==1", "Error parsing override 'seed==1'"),
    ("data.labels=[a,b", "no viable alternative at input '[a,b'"),
]  # fmt: skip


@pytest.mark.parametrize(("given", "message"), TOLD, ids=lambda v: v[:30])
def test_a_complaint_in_our_words(given, message):
    with (
        pytest.raises(Exception) as caught,  # noqa: PT011 -- Hydra's have no common class
        initialize_config_dir(str(config_folder()), version_base="1.3"),
    ):
        compose("config", given.split())
    told = explain(caught.value)
    assert message in told
    for word in ("provider=", "path:", "pkg://", "https://", "in struct", "UNQUOTED_CHAR", "\n"):
        assert word not in told


# Keys of settings that only some options of a group hold, each group with the reason.
SOME_ONLY = {
    "adapter": "an adapter's file holds what its class takes",
    "attack": "a kind of attack has no use for the others' numbers",
    "engine": "engine=inline has no workers",
    "partition": "parameters of one way to deal; `holder` is a node's",
    "privacy": "the adaptive clip is of unit=client alone",
}


def groups():
    for group in dataclasses.fields(Settings):
        if dataclasses.is_dataclass(group.type) and (config_folder() / group.name).is_dir():
            names = {f.name for f in dataclasses.fields(group.type)} - {"target", "options"}
            files = sorted(Path(config_folder() / group.name).glob("*.yaml"))
            yield group.name, names, {p.stem: set(OmegaConf.load(p)) for p in files}


def name(value):
    return value if isinstance(value, str) else ""


@pytest.mark.parametrize(("group", "names", "files"), groups(), ids=name)
def test_every_key_of_the_settings_can_be_set_without_a_plus_sign(group, names, files):
    if group == "strategy":
        return
    for name, keys in files.items():
        assert group in SOME_ONLY or names - keys == set(), f"{group}/{name}.yaml"
    assert names - set().union(*files.values()) == set()
