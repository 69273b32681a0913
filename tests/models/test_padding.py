"""What padding holds reaches no example, whatever it is."""

from dataclasses import replace

import pytest
import torch

from fedsvd.client import received
from fedsvd.client.received import RefusedState, refuse
from fedsvd.client.training import train_locally
from fedsvd.errors import ClientsFailed
from fedsvd.lowrank import LowRank
from fedsvd.models.classifier import pool
from fedsvd.privacy.dpsgd import ClippingOptimizer
from fedsvd.testing.architectures import (
    ARCHITECTURES,
    PAD,
    small_backbone,
    small_worker,
    some_texts,
)
from tests.privacy.steps import GIVEN, gap, longest, moved_state

N = 30


@pytest.mark.parametrize("value", [float("nan"), float("inf"), 1e38])
@pytest.mark.parametrize("pooling", ["mean", "cls", "last"])
def test_pooling_selects_and_does_not_multiply(value, pooling):
    hidden, mask = torch.randn(2, 4, 3), torch.tensor([[1, 1, 1, 1], [1, 1, 0, 0]])
    expected = pool(hidden, mask, pooling)
    hidden[1, 2:] = value
    leaf = hidden.requires_grad_()
    found = pool(leaf, mask, pooling)
    assert torch.equal(found, expected)
    found.sum().backward()
    assert bool(leaf.grad.isfinite().all())
    assert not leaf.grad[1, 2:].any()


def texts():
    """29 texts of 8 tokens and one of 10, so that all share a micro-batch and 29 are padded."""
    found = some_texts(N, 5, 8, 8)
    found.columns["input_ids"][7] = torch.arange(20, 30)
    lengths = found.lengths.clone()
    lengths[7] = 10
    return replace(found, lengths=lengths)


def backbone():
    """A BERT whose embeddings have a first coordinate of 1 for padding and of 0 for tokens."""
    model = small_backbone(ARCHITECTURES["BERT"])
    embeddings = model.embeddings
    for table in (
        embeddings.word_embeddings, embeddings.position_embeddings, embeddings.token_type_embeddings
    ):  # fmt: skip
        table.weight[:, 0] = 0
    embeddings.word_embeddings.weight[PAD, 0] = 1
    embeddings.LayerNorm = torch.nn.Identity()
    return model


def crafted(worker):
    """A state that overflows where the lowest value layer sees padding, and nowhere else."""
    state = moved_state(worker)
    layer = next(name for name in worker.model.layers if "value" in name)
    A, B = (t.clone() for t in (state.factors[layer].A, state.factors[layer].B))
    A[0], B[:, 0] = 0, 1e20
    A[0, 0] = 1e20
    return replace(state, factors={**state.factors, layer: LowRank(A, B)})


@pytest.fixture
def worker():
    given = [*GIVEN, "training.microbatch_tokens=4096"]
    return small_worker(ARCHITECTURES["BERT"], *given, n=N, texts=texts(), backbone=backbone())


def test_the_crafted_state_is_refused(worker):
    with pytest.raises(RefusedState, match=r"value\.A: entries of size"):
        train_locally(worker, crafted(worker), 0, 1)


def unselected(worker):
    """Let adapted layers see padding as it is."""
    for layer in worker.model.layers.values():
        assert layer._forward_pre_hooks
        layer._forward_pre_hooks.clear()


def without_limits(monkeypatch):
    monkeypatch.setattr(received, "ENTRIES", float("inf"))
    monkeypatch.setattr(received, "RELATIVE", float("inf"))


def sums_of(worker, state, monkeypatch):
    """The clipped sums with and without the long example: the step itself would drown in rounding."""
    sums = []

    def keep(self):
        sums.append(torch.cat([p.summed_grad.flatten().double() for p in self.params]))
        for p in self.params:
            p.grad = torch.zeros_like(p)

    monkeypatch.setattr(ClippingOptimizer, "add_noise", keep)
    gap(worker, state, longest(worker))
    return sums


def far(worker, sums):
    return float((sums[0] - sums[1]).norm()) / worker.settings.privacy.clip_norm


def test_one_longer_example_spoils_no_other(worker, monkeypatch):
    state = crafted(worker)
    without_limits(monkeypatch)
    assert far(worker, sums_of(worker, state, monkeypatch)) <= 1 + 1e-4


def test_what_the_batch_spoils_is_taken_from_each_example_alone(worker, monkeypatch):
    state = crafted(worker)
    without_limits(monkeypatch)
    unselected(worker)
    sums = sums_of(worker, state, monkeypatch)
    assert bool(sums[0].any())
    assert far(worker, sums) <= 1 + 1e-4


def test_without_either_it_would(worker, monkeypatch):
    state = crafted(worker)
    without_limits(monkeypatch)
    unselected(worker)
    real = ClippingOptimizer.clip_and_accumulate

    def trusting(self):
        self.alone = None
        real(self)

    monkeypatch.setattr(ClippingOptimizer, "clip_and_accumulate", trusting)
    monkeypatch.setattr(
        "fedsvd.privacy.dpsgd._from_loop", lambda _, group, losses: torch.zeros(len(group))
    )
    assert far(worker, sums_of(worker, state, monkeypatch)) > 2


@pytest.mark.parametrize("name", ["BERT", "RoBERTa", "GPT-2", "Llama", "DistilBERT"])
def test_the_padded_length_is_in_no_gradient(name):
    worker = small_worker(ARCHITECTURES[name], *GIVEN, n=6)
    state = moved_state(worker)
    worker.model.write(state)
    named = list(worker.model.trainable().values())
    found = []
    for width in (12, 13, 31):
        row = worker.tokens.columns["input_ids"][0]
        ids = torch.full((2, width), PAD)
        ids[0, : len(row)] = row
        ids[1] = 9
        mask = torch.zeros_like(ids)
        mask[0, : len(row)], mask[1] = 1, 1
        loss = worker.model({"input_ids": ids, "attention_mask": mask})[0].sum()
        found.append(torch.cat([g.flatten() for g in torch.autograd.grad(loss, named)]))
    alone = worker.model({"input_ids": row[None], "attention_mask": torch.ones_like(row[None])})
    found.append(torch.cat([g.flatten() for g in torch.autograd.grad(alone.sum(), named)]))
    for other in found[1:]:
        assert float((other - found[0]).norm()) < 1e-5 * float(found[0].norm())


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        (lambda s, n: {n: torch.full_like(s[n], float("nan"))}, "entries of size nan"),
        (lambda s, n: {n: torch.full_like(s[n], float("inf"))}, "entries of size inf"),
        (lambda s, n: {n: s[n] + 1e30}, r"entries of size 1e\+30"),
        (lambda s, n: {n: 500 + 0 * s[n], n[:-1] + "A": 900 + 0 * s[n[:-1] + "A"]}, "limit"),
        (lambda s, n: {"head.weight": s["head.weight"] - 1e5}, "head.weight: entries"),
        (lambda s, n: {n[:-1] + "W": torch.full((16, 16), 5e4)}, "W: entries"),
        (lambda s, n: {n[:-1] + "W": torch.full((16, 16), 9e2)}, r"s \|\|.*W\|\| is .*, limit"),
    ],
)
def test_absurd_states_are_refused_by_name(worker, change, sentence):
    state = worker.initial
    name = next(n for n in state.tensors() if n.endswith(".B"))
    refuse(worker.model.layers, worker.initial, state)
    refuse(worker.model.layers, worker.initial, moved_state(worker))
    with pytest.raises(RefusedState, match=sentence):
        train_locally(worker, state.update(change(state.tensors(), name)), 0, 1)
    train_locally(worker, state, 0, 1)  # the next one trains


def test_a_refusal_is_a_failure_without_steps():
    from fedsvd import experiment
    from fedsvd.strategies.build import build_strategy
    from tests.conftest import TINY, compose_settings

    settings = compose_settings(*TINY, "faults.min_replies=0", "faults.below=stop")
    run = experiment.prepare(settings, build_strategy(settings.strategy))
    tensors = run.state.tensors()
    run.state = run.state.update({n: t * 1e30 for n, t in tensors.items() if n.endswith(".A")})
    with pytest.raises(ClientsFailed, match=r"all 3 clients failed .*RefusedState"):
        experiment.one_round(run, 1)
    assert all(run.ledger.steps(k) == 0 for k in range(6))
