"""A model whose frozen tails are one operation each trains and evaluates as the model as it was."""

from dataclasses import replace

import pytest
import torch

from fedsvd.client import remembered
from fedsvd.client import shorten as module
from fedsvd.client import worker as workers
from fedsvd.client.shorten import shorten
from fedsvd.client.worker import build_worker
from fedsvd.models.tail import Tail
from fedsvd.testing.architectures import ARCHITECTURES, small_worker
from tests.conftest import compose_settings
from tests.privacy.steps import moved_state

CASES = {
    "mean": {"pooling": "mean"},
    "cls": {"pooling": "cls"},
    "last": {"pooling": "last"},
    "dense": {"pooling": "cls", "targets": ["dense"]},  # nothing is frozen
}


def built(monkeypatch, case, as_it_was, name="BERT"):
    with monkeypatch.context() as patch:
        if as_it_was:
            patch.setattr(workers, "shorten", lambda *_: [])
        made = small_worker(replace(ARCHITECTURES[name], **CASES[case]))
    made.model.write(moved_state(made))
    return made


def seen(worker):
    """Return logits, and the gradients of examples by hooks."""
    worker.losses([0, 5, 3, 8]).sum().backward()
    samples = torch.cat([p.grad_sample.flatten(1) for p in worker.model.trainable().values()], 1)
    worker.mend()
    return worker.outputs([7, 2, 0]), samples


def tails(worker):
    return [
        m.forward.__self__
        for m in worker.model.modules()
        if isinstance(getattr(m.__dict__.get("forward"), "__self__", None), Tail)
    ]


@pytest.mark.parametrize("name", ["BERT", "RoBERTa"])
@pytest.mark.parametrize("case", CASES)
def test_logits_and_gradients_are_those_of_the_model_as_it_was(monkeypatch, case, name):
    new, old = (built(monkeypatch, case, as_it_was, name) for as_it_was in (False, True))
    assert not tails(old)
    blocks = len(old.model.backbone.base_model.encoder.layer)
    assert len(tails(new)) == (0 if case == "dense" else blocks)
    assert [t._first for t in tails(new)].count(True) == (case == "cls")
    for found, expected in zip(seen(new), seen(old), strict=True):
        assert (found - expected).norm() < 1e-5 * expected.norm()
        if case in ("mean", "last", "dense"):  # GELU by erf, every row: the same bits
            assert torch.equal(found, expected)


@pytest.mark.parametrize(
    "wrongly", [lambda x, y: y + 0.01 * x, lambda x, y: y * float("nan"), lambda x, y: y[..., :3]]
)
def test_where_features_differ_the_model_is_left_as_it_was(monkeypatch, wrongly):
    worker = built(monkeypatch, "mean", True)
    asked = workers.some_tokens("it", worker.model.backbone, worker.tokens, 16, 2, worker.objective)
    wrong = module.Tail._after_attention
    monkeypatch.setattr(
        module.Tail, "_after_attention", lambda self, x, y: wrongly(x, wrong(self, x, y))
    )
    before = worker.outputs([7, 2, 0])
    assert shorten(worker.model, asked, worker.device) == []
    assert not tails(worker)
    assert torch.equal(worker.outputs([7, 2, 0]), before)
    monkeypatch.undo()
    assert shorten(worker.model, asked, worker.device)
    assert tails(worker)


def test_a_part_that_is_watched_is_left_alone(monkeypatch):
    worker = built(monkeypatch, "mean", True)
    asked = workers.some_tokens("it", worker.model.backbone, worker.tokens, 16, 2, worker.objective)
    blocks = worker.model.backbone.base_model.encoder.layer
    blocks[0].output.dense.register_forward_hook(lambda *_: None)
    assert len(shorten(worker.model, asked, worker.device)) == len(blocks) - 1


def test_a_process_asks_a_model_once(monkeypatch, tiny_inputs):
    def start(*overrides):
        settings = compose_settings(*tiny_inputs, "rounds=1", "engine.threads=1", *overrides)
        asked.append(0)
        return build_worker(settings)

    asked, features = [], module._features

    def counted(*given):
        asked[-1] += 1
        return features(*given)

    monkeypatch.setattr(module, "_features", counted)
    remembered.forget()
    workers = [start(*o) for o in ([], ["seed=1"], ["adapter.rank=3"], ["adapter.rank=3"])]
    assert asked == [2, 0, 2, 0]
    assert all(tails(w) for w in workers)
    monkeypatch.setattr(module, "CLEAR", 0.0)
    remembered.forget()
    assert all(tails(start()) for _ in range(2))
    assert asked[-2:] == [2, 2]  # what is tolerated and not clearly right is asked again
