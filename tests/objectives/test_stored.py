"""Frozen weights in fewer bytes, attention, blocks that run twice: gradients against loops, bits."""

import pytest
import torch

from fedsvd.adapters.stored import StoredLinear, expanded, shape_of
from fedsvd.client.dropout import keys_of_step, own_losses
from fedsvd.client.worker import build_worker
from fedsvd.errors import InputError
from fedsvd.models import language_model
from fedsvd.privacy.exactness import farthest
from tests.conftest import compose_settings
from tests.objectives.small import make_model, overrides
from tests.tiny import outcome, run

ROWS = [3, 0, 5, 8, 2]
BF16, AGAIN = "model.dtype=bfloat16", "training.gradient_checkpointing=true"


def made(folder, kind, *more):
    worker = build_worker(compose_settings(*overrides(folder, kind, *more)))
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for p in worker.model.trainable().values():
            p.add_(0.3 * torch.randn(p.shape, generator=generator))
    return worker


def by_hooks(worker, losses):
    worker.hooks.renew()
    losses(ROWS).sum().backward()
    return {n: p.grad_sample.clone() for n, p in worker.model.trainable().items()}


def by_loop(worker, losses):
    """Return the gradients of each row alone, by plain autograd."""
    worker.hooks.disable_hooks()
    named, found = worker.model.trainable(), {}
    for row in ROWS:
        for p in named.values():
            p.grad = None
        losses([row]).sum().backward()
        for n, p in named.items():
            found.setdefault(n, []).append(p.grad.clone())
    return {n: torch.stack(rows) for n, rows in found.items()}


@pytest.mark.parametrize("side", ["left", "right"])
@pytest.mark.parametrize("kind", ["llama", "qwen2", "gpt2"])
def test_gradients_of_examples_are_those_of_a_loop_without_blocks_that_run_twice(
    tmp_path, kind, side, monkeypatch
):
    """With bfloat16 weights, checkpointing, dropout and chunks of two tokens of logits.

    Against a loop that recomputes nothing and has all logits of an example at once.
    """
    more = ("training.factors=AB", "adapter.dropout=0.25", "privacy.gradients=hooks", BF16)
    given = overrides(tmp_path, kind, *more)
    make_model(tmp_path / kind, kind, side=side)
    found = {}
    for name, again in (("plain", []), ("again", [AGAIN])):
        worker = build_worker(compose_settings(*given, *again))
        generator = torch.Generator().manual_seed(11)
        with torch.no_grad():
            for p in worker.model.trainable().values():
                p.add_(0.3 * torch.randn(p.shape, generator=generator))
        assert {p.dtype for p in worker.model.trainable().values()} == {torch.float32}
        assert worker.model.backbone.get_input_embeddings().weight.dtype == torch.bfloat16
        worker.model.set_dropout(True)
        key = keys_of_step(worker.tokens, 0, "x")
        losses = own_losses(worker.losses, key, worker.device, True, False)
        if name == "plain":
            found[name] = by_loop(worker, losses)
        with monkeypatch.context() as patch:
            patch.setattr(language_model, "CHUNK_BYTES", 4 * 320 * 2)
            found[f"{name} hooks"] = by_hooks(worker, losses)
    found["again"] = found["again hooks"]
    assert farthest(found["again"], found["plain"]).size < 2e-5
    for n, expected in found["plain"].items():
        assert bool(expected.any())
        assert torch.equal(found["again hooks"][n], found["plain hooks"][n])  # the same bits
    clip = 0.05
    norms = {
        k: torch.stack([g.flatten(1).norm(dim=1) for g in v.values()]).norm(dim=0)
        for k, v in found.items()
    }
    factors = {k: (clip / norm).clamp(max=1) for k, norm in norms.items()}
    sums = {
        k: {n: torch.einsum("n,n...->...", factors[k], g)[None] for n, g in found[k].items()}
        for k in ("again", "plain")
    }
    assert farthest(sums["again"], sums["plain"]).size < 2e-5


def test_blocks_that_run_twice_keep_less_and_the_same_bits(tmp_path):
    kept = {}
    for name, more in (("plain", ()), ("again", (AGAIN,))):
        worker = made(tmp_path, "llama", *more)
        size = 0

        def pack(x):
            nonlocal size
            size += x.numel()
            return x

        with torch.autograd.graph.saved_tensors_hooks(pack, lambda x: x):
            worker.hooks.disable_hooks()
            loss = worker.losses(ROWS).sum()
        kept[name] = size
        loss.backward()
    assert kept["again"] < kept["plain"] / 4


def test_a_run_that_computes_blocks_twice_ends_in_the_same_bits(tmp_path):
    given = [*overrides(tmp_path), "adapter.dropout=0.1", "model.dropout=0.1", "privacy=none"]
    run(tmp_path / "plain", given)
    run(tmp_path / "again", given, AGAIN)
    assert outcome(tmp_path / "plain")[0] == outcome(tmp_path / "again")[0]


@pytest.mark.parametrize(("kind", "far"), [("int8", 0.03), ("nf4", 0.15)])
def test_quantised_weights_are_near_and_gradients_are_an_examples_own(tmp_path, kind, far):
    pytest.importorskip("bitsandbytes", reason="needs the optional package bitsandbytes")
    plain = made(tmp_path, "llama")
    worker = made(tmp_path, "llama", f"model.quantization={kind}")
    assert worker.plan.gradients == "hooks"
    name = "layers.1.mlp.up_proj"
    layer = worker.model.backbone.get_submodule(f"base_model.model.{name}")
    weight = plain.model.backbone.get_submodule(f"base_model.model.{name}").weight
    assert isinstance(layer, StoredLinear)
    assert layer.weight.dtype == {"int8": torch.int8, "nf4": torch.uint8}[kind]
    assert layer.weight.numel() == weight.numel() // {"int8": 1, "nf4": 2}[kind]
    assert shape_of(layer) == tuple(weight.shape)
    error = (expanded(layer, torch.float32) - weight).norm() / weight.norm()
    assert 0 < float(error) < far
    found, expected = by_hooks(worker, worker.losses), by_loop(worker, worker.losses)
    assert farthest(found, expected).size < 2e-5


@pytest.mark.parametrize(
    ("more", "why"),
    [
        (("adapter=pissa", BF16), r"adapter: 'pissa' is not allowed.*model\.dtype=bfloat16"),
        (("adapter=dora", "model.quantization=nf4"), r"'dora'.*model\.quantization=nf4"),
        (("model.dtype=float16",), r"model\.dtype: 'float16'"),
        (("model.attention=flash",), r"model\.attention: 'flash'"),
        (("model.quantization=int4",), r"model\.quantization: 'int4'"),
    ],
)
def test_what_cannot_work_is_refused_by_name(tmp_path, more, why):
    with pytest.raises(InputError, match=why):
        build_worker(compose_settings(*overrides(tmp_path, "llama", *more)))


def test_strategies_that_change_frozen_weights_and_models_of_another_class_are_refused(tmp_path):
    given = overrides(tmp_path, "gpt2")
    with pytest.raises(InputError, match=r"strategy: .*FedEx.* changes frozen weights"):
        run(tmp_path / "run", given, "strategy=fedex", BF16)
    pytest.importorskip("bitsandbytes", reason="needs the optional package bitsandbytes")
    with pytest.raises(InputError, match=r"model\.quantization: 'nf4' is not allowed with"):
        build_worker(compose_settings(*given, "model.quantization=nf4"))


def test_fused_attention_gives_the_same_losses(tmp_path):
    losses = [made(tmp_path, "llama", *more).losses(ROWS).detach()
              for more in ((), ("model.attention=sdpa",))]  # fmt: skip
    torch.testing.assert_close(*losses, rtol=1e-5, atol=1e-6)
