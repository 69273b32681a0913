"""The command `fedsvd`: its words, its help, its version."""

import subprocess
import sys

import pytest

import fedsvd
from fedsvd.__main__ import COMMANDS, main


def test_help_names_every_command(capfd):
    for given in ([], ["--help"], ["-h"], ["help"]):
        assert main(given) == 0
        told = capfd.readouterr().out
        assert all(f"  {name} " in told for name in COMMANDS)
        assert max(map(len, told.splitlines())) <= 80


@pytest.mark.parametrize("name", COMMANDS)
def test_each_command_has_its_help(name, capfd):
    try:
        status = main([name, "--help"])
    except SystemExit as end:
        status = end.code
    assert status == 0
    assert len(capfd.readouterr().out.splitlines()) > 5


@pytest.mark.parametrize("given", [["--version"], ["run", "--version"]])
def test_the_version_is_ours(given, capfd):
    assert main(given) == 0
    lines = capfd.readouterr().out.splitlines()
    assert lines[0] == f"fedsvd {fedsvd.__version__}"
    assert "torch 2." in lines[2]
    assert all(line.split()[1][0].isdigit() for line in lines)


def test_a_wrong_word_has_the_nearest_right_one(capfd):
    assert main(["resluts"]) == 2
    told = capfd.readouterr().err
    assert told.startswith("error: fedsvd: 'resluts'")
    assert "did you mean 'results'" in told
    assert len(told.splitlines()) == 1


def test_the_status_and_the_rest_are_the_commands(capfd):
    assert main(["run", "privacy.epsilon=-1"]) == 2
    assert capfd.readouterr().err.startswith("error: privacy.epsilon: -1.0")


def test_the_package_is_a_command():
    done = subprocess.run(
        [sys.executable, "-m", "fedsvd", "--version"], capture_output=True, text=True, check=True
    )
    assert done.stdout.startswith("fedsvd ")
