"""What --help says of every key."""

import pytest
from omegaconf import OmegaConf

from fedsvd.composing import compose, config_folder
from fedsvd.config import from_config
from fedsvd.errors import InputError
from fedsvd.helping import comments, help_text, keys
from fedsvd.run import main

VALUES = {"data.filter.source", "data.splits.all"}  # no keys of ours


def said(*overrides: str) -> dict[str, str]:
    """What the help says of each key."""
    text = help_text(config_folder(), list(overrides)).split("key=value):\n\n")[1]
    text = text.split("\n\nExamples")[0]
    return {path: line.partition(" # ")[2] for path, line in keys(text) if path is not None}


def test_every_default_has_a_meaning() -> None:
    told = said()
    assert {"seed", "clients.per_round", "privacy.threat_model", "attack.name"} <= set(told)
    groups = {key.split(".")[0] for key in told if "." in key}
    assert {key for key, meaning in told.items() if not meaning} == VALUES | groups


def test_what_is_chosen_is_explained_by_its_own_file() -> None:
    told = said("strategy=hetlora", "model=bert_tiny", "adapter=effort")
    assert told["strategy.penalty"] == "lambda of the tail's size in the clients' loss"
    assert told["adapter.rank"] == "triplets that train [a whole number of at least 1 or null]"
    assert told["model.pooling"].startswith("how token features")  # of the default of the group
    assert "strategy.period" not in told


@pytest.mark.parametrize(
    ("key", "value"),
    [("training.lr", -1), ("clients.per_round", 0), ("privacy.accountant", "prw"), ("rounds", "x")],
)
def test_what_a_key_takes_is_what_its_error_says(key: str, value: object) -> None:
    config = OmegaConf.to_container(compose([]), resolve=True)
    assert isinstance(config, dict)
    group = config
    *above, name = key.split(".")
    for part in above:
        group = group[part]
    group[name] = value
    with pytest.raises(InputError) as caught:
        from_config(config)
    assert caught.value.key == key
    assert caught.value.allowed in str(caught.value)
    assert caught.value.allowed in said()[key]


def test_comments_go_on_in_the_next_lines() -> None:
    text = "# head\na:\n  b: 1  # one\n       # two\n  c: x#y\nd: 2\n# three\n"
    assert comments(text) == {"a.b": "one two"}


def test_the_command_prints_it(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategy=ffa", "--help"]) == 0
    told = capsys.readouterr().out
    assert told.startswith("Federated, differentially private")
    assert "hydra/launcher: basic, ray" in told
    assert "$" not in told


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["strategy=fedsv", "--help"]) == 2
    assert "did you mean 'fedsvd'" in capsys.readouterr().err
    with pytest.raises(InputError):
        help_text(config_folder(), ["rouds=3"])
