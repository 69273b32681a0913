"""The choice of how gradients are taken is one for all processes, and is told."""

import json

import pytest
import torch

from fedsvd.checkpoints.identity import flat, surroundings
from fedsvd.client import gradients
from fedsvd.client.gradients import settle
from fedsvd.client.worker import build_worker
from fedsvd.engines.ray import worker_settings
from fedsvd.errors import InputError
from fedsvd.testing.architectures import ARCHITECTURES, small_worker
from tests.conftest import TINY, compose_settings
from tests.tiny import make_inputs, run


def test_a_run_tells_what_was_taken(tmp_path, monkeypatch, capsys):
    monkeypatch.setattr("fedsvd.recorders.report.write_report", lambda *_: None)
    inputs, digests = make_inputs(tmp_path), []
    for given, taken, line in (
        ([], "hooks", "by hooks, found right for this model"),
        (["privacy.gradients=loop"], "loop", "of each example alone"),
        (["privacy=none"], None, ""),
    ):
        summary = run(tmp_path / str(taken), inputs, *given)
        assert summary["gradients"] == taken
        told = json.loads((tmp_path / str(taken) / "privacy.json").read_text())
        assert told["gradients"] == taken
        assert line in capsys.readouterr().out
        digests.append(summary["state_digest"])
    # Rounding tells hooks from the loop, and the grid of the noise can take that away again.
    assert digests[2] not in digests[:2]


def test_workers_get_the_servers_choice_and_stay_with_it():
    settings = compose_settings(*TINY)
    for choice in ("hooks", "loop"):
        told = worker_settings(settings, ("B",), choice)
        assert told.privacy.gradients == choice
        assert build_worker(told).plan.gradients == choice
    assert worker_settings(settings, ("B",)).privacy.gradients == "auto"
    with pytest.raises(InputError, match="'hooks' is not allowed"):
        small_worker(ARCHITECTURES["XLNet"], "privacy.gradients=hooks")


def test_checkpoints_know_the_loop_and_not_the_wish():
    auto = build_worker(compose_settings(*TINY))
    loop = build_worker(compose_settings(*TINY, "privacy.gradients=loop"))
    assert flat(auto.settings) == flat(loop.settings)
    told = surroundings(loop)
    assert told.pop("privacy.gradients") == "loop"
    assert told == surroundings(auto)


def test_another_word_is_refused():
    with pytest.raises(InputError, match="did you mean 'hooks'"):
        compose_settings(*TINY, "privacy.gradients=hook")


def test_rounding_beyond_what_is_tolerated_takes_the_loop(monkeypatch):
    monkeypatch.setattr(gradients, "TOLERANCE", 1e-9)  # float32 rounds above it
    worker = small_worker(ARCHITECTURES["BERT"])
    before = {n: t.clone() for n, t in worker.model.state_dict().items()}
    settle(worker)
    assert worker.plan.gradients == "loop"
    after = worker.model.state_dict()
    assert all(torch.equal(t, before[n]) and t.dtype == before[n].dtype for n, t in after.items())


def test_a_small_leak_between_examples_is_no_rounding():
    worker = small_worker(ARCHITECTURES["BERT"])
    assert worker.plan.gradients == "hooks"
    block = next(m for n, m in worker.model.backbone.named_modules() if n.endswith("layer.0"))

    def leak(module, inputs, output):
        first = output[0] if isinstance(output, tuple) else output
        mixed = first + 1e-3 * (first.mean(dim=0, keepdim=True) - first)
        return (mixed, *output[1:]) if isinstance(output, tuple) else mixed

    block.register_forward_hook(leak)
    settle(worker)
    assert worker.plan.gradients == "loop"
