"""Who can read what a run leaves: file modes, from the first byte on."""

import os
import stat

import pytest
import torch

from fedsvd import files
from fedsvd.checkpoints.checkpoint import read_whole, write_checkpoint
from fedsvd.lowrank import AdapterState
from tests.tiny import make_inputs, run


@pytest.fixture(autouse=True)
def usual_mask():
    """Others may read what is made, unless somebody sees to it."""
    before = os.umask(0o022)
    yield
    os.umask(before)


def mode(path):
    return stat.S_IMODE(path.stat().st_mode)


@pytest.mark.parametrize("wanted", [files.OPEN, files.CLOSED])
def test_a_file_has_its_mode_before_its_first_byte(wanted, tmp_path, monkeypatch):
    aside = tmp_path / "secret.tmp"
    aside.write_bytes(b"of a process that was killed")
    aside.chmod(0o644)
    seen, write = [], os.fsync

    def fsync(descriptor):
        seen.append((stat.S_IMODE(os.fstat(descriptor).st_mode), aside.exists()))
        write(descriptor)

    made, opened = [], os.open

    def note(path, *args, **kwargs):
        descriptor = opened(path, *args, **kwargs)
        if str(path) == str(aside):
            found = os.fstat(descriptor)
            made.append((stat.S_IMODE(found.st_mode), found.st_size))
        return descriptor

    monkeypatch.setattr(os, "fsync", fsync)
    monkeypatch.setattr(os, "open", note)
    files.write_bytes(tmp_path / "secret", b"secret", wanted)
    expected = wanted & ~0o022
    assert made == [(expected, 0)]
    assert seen[0] == (expected, True)
    assert mode(tmp_path / "secret") == expected
    assert (tmp_path / "secret").read_bytes() == b"secret"
    assert not aside.exists()


@pytest.mark.parametrize("hard", [True, False], ids=["hard link", "copy"])
def test_a_further_name_of_a_file_is_as_closed(hard, tmp_path, monkeypatch):
    if not hard:
        monkeypatch.setattr(os, "link", lambda *_: (_ for _ in ()).throw(OSError("no links")))
    files.write_bytes(tmp_path / "a", b"secret", files.CLOSED)
    files.link(tmp_path / "a", tmp_path / "b")
    assert mode(tmp_path / "b") == 0o600
    assert (tmp_path / "b").read_bytes() == b"secret"


def test_a_private_folder_is_closed_also_one_that_was_open(tmp_path):
    files.private_folder(tmp_path / "new" / "one")
    assert mode(tmp_path / "new" / "one") == 0o700
    (tmp_path / "old").mkdir(mode=0o755)
    files.private_folder(tmp_path / "old")
    assert mode(tmp_path / "old") == 0o700


def test_a_checkpoint_is_its_owners(tmp_path):
    write_checkpoint(tmp_path / "c.safetensors", AdapterState({}), {"client/0/x": torch.ones(2)})
    assert mode(tmp_path / "c.safetensors") == 0o600


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("inputs"))


@pytest.mark.parametrize(
    ("privacy", "folder"), [("none", 0o755), ("client_level", 0o700), ("dp_sgd", 0o700)]
)
def test_personal_factors_lie_in_checkpoints_that_others_cannot_read(
    privacy, folder, inputs, tmp_path
):
    out = tmp_path / "run"
    run(out, inputs, f"privacy={privacy}", "strategy=fedsa", "rounds=1", "recorder=tensorboard")
    assert mode(out) == folder
    assert mode(out / "checkpoints") == 0o700
    found = list((out / "checkpoints").iterdir())
    assert {mode(path) for path in found} == {0o600}
    kept = read_whole(out / "checkpoints" / "last.safetensors").tensors
    assert any("/personal/" in name for name in kept)  # raw factors: what the modes are for


def test_a_folder_is_closed_before_anything_is_in_it(inputs, tmp_path, monkeypatch):
    closed, make = [], files.private_folder

    def note(folder):
        closed.append([p.name for p in folder.iterdir()])
        make(folder)

    monkeypatch.setattr("fedsvd.execute.private_folder", note)
    (tmp_path / "run").mkdir(mode=0o755)
    (tmp_path / "run" / "trial.log").write_text("")  # as in a sweep
    run(tmp_path / "run", inputs, "rounds=1")
    assert closed == [["trial.log"]]


def test_a_folder_with_other_things_is_not_closed_and_that_is_said(inputs, tmp_path, capsys):
    out = tmp_path / "home"
    out.mkdir(mode=0o755)
    (out / "thesis.tex").write_text("mine")
    run(out, inputs, "rounds=1")
    assert mode(out) == 0o755
    assert "holds other things and stays open to others" in capsys.readouterr().err
    out.chmod(0o750)  # whoever opens it later
    run(out, inputs, "rounds=1", "resume=auto")
    assert mode(out) == 0o750
