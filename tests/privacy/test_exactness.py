"""One example's gradient is its own on every architecture, or the run is refused."""

import itertools
import math
import random
import re
import threading

import numpy as np
import pytest
import torch
from torch import nn
from transformers import BertModel

from fedsvd.client.training import train_locally
from fedsvd.errors import InputError
from fedsvd.privacy.exactness import TOLERANCE, Difference, apart, farthest
from fedsvd.testing.architectures import (
    ARCHITECTURES,
    Architecture,
    small_backbone,
    small_worker,
    some_texts,
)
from tests.privacy.steps import GIVEN, N, gap, longest, moved_state, step_sum

LOOP = {
    "DeBERTa", "DeBERTa-v2, keys shared", "DeBERTa-v3", "Longformer", "ConvBERT", "SqueezeBERT",
    "FNet", "Funnel", "XLNet", "Qwen2-MoE",
}  # fmt: skip
REFUSED = {
    "Nystromformer": "cannot be used as a backbone of texts: it raises RuntimeError: shape",
    "RWKV": "cannot be trained with privacy.unit=example, as no gradient would be one example's own",
    "CANINE": "has no table of token embeddings",
    "Reformer": "it gives hidden states of shape (1, 4, 32), not (1, 4, 16)",
    "ViT": "cannot be used as a backbone of texts: it raises AttributeError",
}


def by_brute_force(worker, state):
    """The clipped sum from plain autograd, examples alone, on a model that never had hooks."""
    worker.model.write(state)
    named, total = worker.model.trainable(), None
    for row in range(N):
        loss = worker.losses([row]).sum()
        found = torch.autograd.grad(
            loss, list(named.values()), allow_unused=True, materialize_grads=True
        )
        one = torch.cat([g.flatten().double() for g in found])
        one = one * min(1.0, worker.settings.privacy.clip_norm / float(one.norm()))
        total = one if total is None else total + one
    return total


@pytest.mark.parametrize("name", ARCHITECTURES)
def test_every_architecture_trains_rightly_or_is_refused(name):
    made = {"n": N, "texts": some_texts(N, 3)}
    if name in REFUSED:
        with pytest.raises(InputError, match=re.escape(REFUSED[name])) as caught:
            small_worker(ARCHITECTURES[name], *GIVEN, **made)
        assert str(caught.value).startswith(f"model.name: '{ARCHITECTURES[name].name}' ")
        assert "\n" not in str(caught.value)
        return
    worker = small_worker(ARCHITECTURES[name], *GIVEN, **made)
    assert worker.plan.gradients == ("loop" if name in LOOP else "hooks")
    state = moved_state(worker)
    assert gap(worker, state, longest(worker)) <= 1 + 1e-4
    plain = small_worker(ARCHITECTURES[name], *GIVEN, "privacy.gradients=loop", **made)
    expected = by_brute_force(plain, state)
    found = step_sum(worker, range(N), state)
    assert float((found - expected).norm()) < 1e-4 * float(expected.norm())


@pytest.mark.parametrize("name", ["DeBERTa-v2, keys shared", "XLNet", "ConvBERT", "Longformer"])
def test_hooks_that_are_asked_for_are_refused_with_the_tensor(name, capsys):
    with pytest.raises(InputError, match=r"privacy\.gradients: 'hooks' is not allowed.*(A|B) "):
        small_worker(ARCHITECTURES[name], "privacy.gradients=hooks")
    small_worker(ARCHITECTURES[name])
    (line,) = [x for x in capsys.readouterr().err.splitlines() if "privacy.gradients" in x]
    assert "one at a time (loop)" in line


def test_without_the_check_a_neighbour_would_move_the_sum(monkeypatch):
    monkeypatch.setattr("fedsvd.client.gradients._by_hooks", lambda *_: Difference("", 0.0))
    worker = small_worker(ARCHITECTURES["FNet"], *GIVEN, n=N, texts=some_texts(N, 3))
    assert worker.plan.gradients == "hooks"
    assert gap(worker, moved_state(worker), longest(worker)) > 1.1


def test_the_check_leaves_nothing_behind(monkeypatch):
    before = torch.random.get_rng_state()
    made = small_worker(ARCHITECTURES["BERT"])
    monkeypatch.setattr("fedsvd.client.worker.settle", lambda worker: None)
    plain = small_worker(ARCHITECTURES["BERT"])
    assert torch.equal(before, torch.random.get_rng_state())
    for (name, p), (_, q) in zip(
        made.model.named_parameters(), plain.model.named_parameters(), strict=True
    ):
        assert torch.equal(p, q), name
        assert p.grad is None
        assert getattr(p, "grad_sample", None) is None
    modes = [m.training for m in made.model.modules()]
    assert modes == [m.training for m in plain.model.modules()]
    results = [train_locally(w, w.initial, 0, 1).state.digest() for w in (made, plain)]
    assert results[0] == results[1]


def test_the_loop_gives_what_hooks_give():
    sums = []
    for kind in ("hooks", "loop"):
        worker = small_worker(
            ARCHITECTURES["BERT"], *GIVEN, f"privacy.gradients={kind}", "model.dropout=0.2",
            "adapter.dropout=0.1", n=N,
        )  # fmt: skip
        assert worker.plan.gradients == kind
        sums.append(step_sum(worker, range(N), moved_state(worker)))
    assert float((sums[0] - sums[1]).norm()) < 1e-5 * float(sums[0].norm())


class Wrapped(nn.Module):
    """A BERT with something beside it that makes an example's gradient not its own."""

    def __init__(self, kind):
        super().__init__()
        self.inner = small_backbone(ARCHITECTURES["BERT"])
        self.config, self.kind = self.inner.config, kind
        self.register_buffer("seen", torch.zeros(16))
        self.norm = nn.BatchNorm1d(16, affine=False)

    def get_input_embeddings(self):
        return self.inner.get_input_embeddings()

    def forward(self, input_ids, attention_mask, **more):
        out = self.inner(input_ids=input_ids, attention_mask=attention_mask)
        hidden = out.last_hidden_state
        if self.kind == "batch":  # of this batch alone: nothing is kept, an example alone is fine
            hidden = hidden - hidden.mean(dim=0, keepdim=True).detach()
        elif self.kind == "draws":
            hidden = hidden * (1 + torch.rand(hidden.shape[-1]))
        elif self.kind == "remembers":
            hidden = hidden + self.seen
            self.seen.copy_(hidden.detach()[0, 0])
        elif self.kind == "padding":
            hidden = hidden + hidden.mean(dim=1, keepdim=True)
        elif self.kind == "numpy":
            import numpy as np

            hidden = hidden * (1 + np.random.rand())  # noqa: NPY002 -- what must be noticed
        out.last_hidden_state = hidden
        return out


SMALL = Architecture("Bert", ("query", "value"), without_pooler=True)


@pytest.mark.parametrize(
    ("kind", "result"),
    [
        ("none", "hooks"),
        ("batch", "loop"),
        ("padding", "loop"),
        ("draws", "loop"),
        ("remembers", r"seen remembers|depends on earlier examples"),
        ("numpy", r"depends on earlier examples|global generators"),
    ],
)
def test_what_a_model_does_beside_its_layers_is_noticed(kind, result):
    made = {"backbone": Wrapped(kind).eval().requires_grad_(False), "n": N}
    if result not in ("hooks", "loop"):
        with pytest.raises(InputError, match=result):
            small_worker(SMALL, *GIVEN, **made)
        return
    worker = small_worker(SMALL, *GIVEN, **made)
    assert worker.plan.gradients == result
    assert gap(worker, moved_state(worker), longest(worker)) <= 1 + 1e-4


@pytest.fixture
def another_thread():
    done = threading.Event()
    thread = threading.Thread(target=done.wait)
    thread.start()
    yield
    done.set()
    thread.join()


def drawing(when, generator=random.random):
    """A model beside which a number is drawn before the calls (from 0) that `when` names."""
    calls, backbone = itertools.count(), small_backbone(SMALL)

    def before(*_):
        if when(next(calls)):
            generator()

    backbone.register_forward_pre_hook(before)
    return backbone


@pytest.mark.parametrize("generator", [random.random, np.random.rand], ids=["python", "numpy"])
def test_what_a_thread_draws_meanwhile_is_not_the_models(another_thread, generator):
    """Flower's own threads do: now and then a run in its simulation was refused."""
    backbone = drawing(lambda call: call < 14, generator)
    assert small_worker(SMALL, *GIVEN, backbone=backbone).plan.gradients == "hooks"


@pytest.mark.parametrize("when", [lambda n: True, lambda n: n % 2, lambda n: n % 5 == 0])
def test_a_model_that_draws_is_refused_also_where_threads_are(another_thread, when):
    with pytest.raises(InputError, match="global generators"):
        small_worker(SMALL, *GIVEN, backbone=drawing(when))


def test_where_no_thread_is_every_draw_is_the_models(monkeypatch):
    monkeypatch.setattr(threading, "active_count", lambda: 1)  # libraries leave threads in a test
    with pytest.raises(InputError, match="global generators"):
        small_worker(SMALL, *GIVEN, backbone=drawing(lambda call: call < 14))


def test_a_layer_that_is_used_twice_with_other_batches_is_noticed(monkeypatch):
    model = small_backbone(ARCHITECTURES["BERT"])
    first, second = (layer.attention.self for layer in model.encoder.layer)
    second.query = first.query  # tied: fine, as both uses see the batch
    assert small_worker(SMALL, backbone=model).plan.gradients == "hooks"
    real = BertModel.forward

    def twice(self, *args, **kwargs):
        out = real(self, *args, **kwargs)
        table = self.embeddings.position_embeddings.weight[:3].unsqueeze(0)
        out.last_hidden_state = out.last_hidden_state + 0.1 * first.query(table).sum()
        return out

    monkeypatch.setattr(BertModel, "forward", twice)
    model = small_backbone(ARCHITECTURES["BERT"])
    first = model.encoder.layer[0].attention.self
    assert small_worker(SMALL, backbone=model).plan.gradients == "loop"


def test_other_units_are_not_asked(monkeypatch):
    from fedsvd.client import worker as module
    from tests.conftest import TINY, compose_settings

    def never(worker):
        raise AssertionError

    monkeypatch.setattr(module, "settle", never)
    for privacy in ("none", "client_level"):
        built = module.build_worker(compose_settings(*TINY, f"privacy={privacy}"))
        assert built.plan.gradients is None
        assert built.hooks is None


def test_farthest_is_the_greatest_relative_distance():
    e = {"a": torch.tensor([[3.0, 4.0], [1.0, 0.0]]), "b": torch.zeros(2, 1)}
    assert farthest(e, e).size == 0
    f = {"a": e["a"].clone(), "b": e["b"].clone()}
    f["a"][0, 0] += 0.5
    found = farthest(f, e)
    assert found.name == "a"
    assert math.isclose(found.size, 0.5 / 5.05)
    f["b"][1] = 0.1  # against 1 % of the example's whole norm
    assert math.isclose(farthest(f, e).size, 0.1 / 0.01, rel_tol=1e-6)
    f["b"][1] = math.nan
    assert farthest(f, e).size == math.inf > TOLERANCE
    assert farthest({"a": e["a"][:1], "b": e["b"]}, e).size == math.inf


def test_how_far_rows_are_apart():
    e = torch.tensor([[3.0, 4.0], [0.0, 0.0]])
    assert apart(e, e) == 0
    assert apart(e + torch.tensor([[0.0, 0.5], [0.0, 0.0]]), e) == pytest.approx(0.1)
    assert apart(e + torch.tensor([[0.0, 0.0], [0.0, 1e-9]]), e) > 1
    assert apart(e * math.nan, e) == apart(e, e * math.inf) == math.inf
