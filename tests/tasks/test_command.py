"""The command that prepares data and models."""

from pathlib import Path

import pytest

from fedsvd.data import prepared
from fedsvd.data.sources import read_tables
from fedsvd.errors import InputError
from fedsvd.settings import DataSettings
from fedsvd.tasks.__main__ import MODELS, TASKS, main


def test_it_lists_what_there_is(capsys: pytest.CaptureFixture[str]) -> None:
    assert main([]) == 0
    lines = capsys.readouterr().out.splitlines()
    assert [line.partition(":")[0] for line in lines] == [*TASKS, *MODELS]


def test_an_unknown_name_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["squad_pair", "--out", str(tmp_path)]) == 2
    assert "did you mean 'squad_pairs'" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("name", ["bert_tiny", "all"])
def test_only_data_have_a_public_client(
    name: str, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["vader", name, "--public", "tweets", "--out", str(tmp_path)]) == 2
    assert f"--public tweets: {name} is no data set; of squad_pairs" in capsys.readouterr().err
    assert list(tmp_path.iterdir()) == []


def test_a_public_client_needs_a_name(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--public", "tweets", "--out", str(tmp_path)]) == 2
    assert "--public tweets: give the NAME of a data set" in capsys.readouterr().err


def test_what_is_lacking_says_how_it_is_made(tmp_path: Path) -> None:
    assert {*prepared.TASKS, *prepared.MODELS} == {*TASKS, *MODELS}
    with pytest.raises(InputError, match=r"does not exist; python -m fedsvd.tasks vader makes it"):
        read_tables(DataSettings("vader", path=str(tmp_path / "vader")))


def test_every_task_and_model_has_a_configuration() -> None:
    configs = Path(__file__).parents[2] / "configs"
    assert all((configs / "data" / f"{name}.yaml").is_file() for name in TASKS)
    assert all((configs / "model" / f"{name}.yaml").is_file() for name in MODELS)
