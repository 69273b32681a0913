"""The watched run is the run: nothing but canaries differs, and nothing stays behind."""

import json
import subprocess
import sys

import numpy as np
import pytest

from fedsvd.audit.command import main
from fedsvd.audit.pipeline import audited, run_with_canaries
from fedsvd.client.worker import get_worker
from tests import planted
from tests.conftest import compose_settings
from tests.tiny import make_inputs


@pytest.fixture(scope="module")
def inputs(tmp_path_factory):
    return make_inputs(tmp_path_factory.mktemp("tiny"), width=64)


def test_the_worker_is_afterwards_what_it_was(inputs):
    settings = audited(compose_settings(*inputs, "rounds=2"))
    worker = get_worker(settings)
    before = (worker.parts, worker.tokens, worker.model.penalty)
    run_with_canaries(settings, 60)
    assert (worker.parts, worker.tokens, worker.model.penalty) == before
    assert "losses" not in vars(worker)


def test_steps_and_batches_are_those_of_the_unwatched_run(inputs, monkeypatch):
    """Canaries are drawn as further examples of the same stream; steps are as many."""
    settings = audited(compose_settings(*inputs, "rounds=2"))
    seen = run_with_canaries(settings, 60)
    worker = get_worker(settings)
    assert set(seen.steps.values()) == {settings.training.local_steps}
    assert {(k, e.round) for k, events in seen.ledger.items() for e in events} == set(seen.steps)
    for batches in seen.batches:
        client = int(batches.who.split()[1])
        assert batches.units >= len(worker.parts[client])


def test_what_is_left_without_canaries_is_the_noise(inputs):
    tiny = ["privacy.noise_multiplier=1e-4", "privacy.epsilon=null", "training.batch_size=12"]
    settings = audited(compose_settings(*inputs, "rounds=4", *tiny))
    seen = run_with_canaries(settings, 120)
    assert seen.shift.value == pytest.approx(1.0, abs=1e-3)
    for release in seen.releases:
        ratio = release.energy / release.entries
        assert ratio < 1e-4  # float32 rounding of steps a thousand times the noise


def test_seeds_draw_other_coins_and_the_same_seed_the_same_scores(inputs):
    settings = audited(compose_settings(*inputs, "rounds=2"))
    first, again = run_with_canaries(settings, 60), run_with_canaries(settings, 60)
    np.testing.assert_array_equal(first.inside, again.inside)
    other = run_with_canaries(audited(compose_settings(*inputs, "rounds=2", "seed=1")), 60)
    assert len(other.inside) != len(first.inside) or not np.allclose(other.inside, first.inside)


def test_the_command_writes_its_files_and_says_ok(inputs, tmp_path, capsys):
    told, figure = tmp_path / "audit.json", tmp_path / "audit.svg"
    status = main([
        *inputs, "rounds=2", "--canaries", "60", "--replays", "100",
        "--json", str(told), "--figure", str(figure),
    ])  # fmt: skip
    out = capsys.readouterr()
    assert status == 0, out
    assert "Nothing is flagged" in out.out
    assert figure.read_text().startswith("<?xml")
    (found,) = json.loads(told.read_text())["audits"]
    assert found["flagged"] == []
    assert len(found["scores"]["in"]) + len(found["scores"]["out"]) == 60
    assert found["plan"]["epsilon"] == pytest.approx(1, rel=0.02)


def test_the_command_says_what_it_flags(inputs, capsys, monkeypatch):
    planted.no_noise(monkeypatch)
    status = main([*inputs, "rounds=2", "--canaries", "60", "--replays", "100", "--seeds", "2"])
    out = capsys.readouterr().out
    assert status == 1
    assert "FLAGGED: " in out
    assert "noise (pipeline)" in out
    assert "2 of 2 seeds flagged" in out


WRONG = {
    "no privacy": (["privacy=none"], "privacy: 'none'"),
    "too few canaries": (["--canaries", "3"], "--canaries: 3"),
    "a part that is none": (["--part", "mechanisms"], "did you mean 'mechanism'"),
    "a figure of another kind": (["--figure", "x.pdf"], "--figure: 'x.pdf'"),
    "a folder that is not there": (["--json", "nowhere/x.json"], "--json: 'nowhere/x.json'"),
    "more rounds than planned": (["rounds=2", "--rounds", "3"], "--rounds: 3"),
    "an unknown key": (["trainin.lr=1"], "did you mean training?"),
    "steps that it cannot undo": (["strategy=prism"], "--part: 'both' is not allowed"),
    "a deployment": (
        ["partition=own", "data.labels=[a,b]", "privacy.secure_noise=true",
         "privacy.diagnostics=false"], "partition: 'own'",
    ),
}  # fmt: skip


@pytest.mark.parametrize(("arguments", "told"), WRONG.values(), ids=WRONG)
def test_wrong_input_is_refused_in_one_line(arguments, told, capsys):
    assert main(arguments) == 2
    (line,) = [x for x in capsys.readouterr().err.splitlines() if not x.startswith("audit [")]
    assert told in line


def test_the_first_line_comes_before_anything_slow_is_imported():
    code = (
        "import sys; import fedsvd.audit.command; "
        "assert not {'torch', 'flwr', 'opacus', 'scipy'} & set(sys.modules)"
    )
    subprocess.run([sys.executable, "-c", code], check=True)
