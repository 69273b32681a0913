"""Ours against PEFT's own implementations of the same methods."""

import pytest
import torch
from peft import EvaConfig, LoraConfig, get_peft_model
from peft.tuners.lora.eva import get_eva_state_dict

from fedsvd.adapters import Dora, Eva, Inputs, Olora, Pissa, Site
from fedsvd.adapters.adapted import NAME
from fedsvd.adapters.lora import attach, write_state
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.settings import AdapterSettings

G = torch.Generator().manual_seed(0)
W = torch.randn(24, 32, generator=G)


def theirs(**settings):
    layer = torch.nn.Sequential(torch.nn.Linear(32, 24))
    with torch.random.fork_rng():
        torch.manual_seed(0)
        layer[0].weight.data.copy_(W)
        return get_peft_model(layer, LoraConfig(r=4, target_modules=["0"], **settings))


def site(alpha=4.0, inputs=None):
    return Site("layer", W, 4, alpha, torch_stream(0, Purpose.ADAPTER, "layer"), inputs=inputs)


@pytest.mark.parametrize("rslora", [False, True])
@pytest.mark.parametrize("rank", [4, 2])
def test_lora_computes_as_theirs_and_a_smaller_rank_keeps_the_layers_scale(rank, rslora):
    """s = alpha / 4, or alpha / 2 with rslora: written out, and by PEFT with zeros for the rest."""
    layer = torch.nn.Sequential(torch.nn.Linear(32, 24))
    layer[0].weight.data.copy_(W)
    settings = AdapterSettings("lora", rank=4, alpha=6.0, targets=("0",), rslora=rslora)
    attached = attach(layer, settings, 0, ("A", "B"))
    drawn = torch.randn(rank, 32, generator=G), torch.randn(24, rank, generator=G)
    write_state(attached.layers, AdapterState({"0": LowRank(*drawn)}))
    x = torch.randn(6, 32, generator=G)
    found = attached.model(x)
    scale = 6 / 2 if rslora else 6 / 4
    by_hand = x @ (W + scale * drawn[1] @ drawn[0]).mT + attached.layers["0"].get_base_layer().bias
    torch.testing.assert_close(found, by_hand, rtol=1e-4, atol=1e-4)
    model = theirs(lora_alpha=6.0, use_rslora=rslora)
    module = model.base_model.model[0]
    with torch.no_grad():
        module.base_layer.bias.copy_(attached.layers["0"].get_base_layer().bias)
        module.lora_A[NAME].weight.zero_()[:rank] = drawn[0]
        module.lora_B[NAME].weight.zero_()[:, :rank] = drawn[1]
    torch.testing.assert_close(found, model(x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_olora(scale):
    module = theirs(lora_alpha=4 * scale, init_lora_weights="olora").base_model.model[0]
    place = site(4 * scale)
    pair = Olora().factors(place)
    torch.testing.assert_close(module.lora_A[NAME].weight, pair.A.float(), rtol=1e-4, atol=1e-5)
    torch.testing.assert_close(module.lora_B[NAME].weight, pair.B.float(), rtol=1e-4, atol=1e-5)
    left = Olora().residual(place, pair)
    torch.testing.assert_close(module.base_layer.weight, left, rtol=1e-4, atol=1e-5)


def test_randomised_pissa_is_as_close_as_theirs():
    best = torch.linalg.svdvals(W.double())[4:].norm()
    for niter in (4, 16):
        pair = Pissa(niter=niter).factors(site())
        ours = (W.double() - pair.product()).norm() / best
        module = theirs(lora_alpha=4, init_lora_weights=f"pissa_niter_{niter}").base_model.model[0]
        assert 1 <= float(ours) < 1.001
        assert float(ours) <= float(module.base_layer.weight.norm() / best) + 1e-3


@pytest.mark.parametrize("scale", [1.0, 2.0])
def test_dora_computes_and_learns_as_theirs(scale):
    x = torch.randn(6, 32, generator=G)
    model = theirs(lora_alpha=4 * scale, use_dora=True)
    module = model.base_model.model[0]
    B = 0.3 * torch.randn(24, 4, generator=G)
    base = torch.nn.Linear(32, 24)
    base.load_state_dict(module.base_layer.state_dict())
    ours = Dora().adapt(base.requires_grad_(False), site(4 * scale))
    with torch.no_grad():
        for layer in (module, ours):
            layer.lora_B[NAME].weight.copy_(B)
        ours.lora_A[NAME].weight.copy_(module.lora_A[NAME].weight)
        ours.magnitude.weight.add_(0.1)
        module.lora_magnitude_vector[NAME].weight.add_(0.1)
    torch.testing.assert_close(ours(x), model(x), rtol=1e-4, atol=1e-5)
    target = torch.randn(6, 24, generator=G)
    for out in (ours(x), model(x)):
        (out * target).sum().backward()
    for mine, other in (
        (ours.lora_A[NAME], module.lora_A[NAME]),
        (ours.lora_B[NAME], module.lora_B[NAME]),
        (ours.magnitude, module.lora_magnitude_vector[NAME]),
    ):
        torch.testing.assert_close(mine.weight.grad, other.weight.grad, rtol=1e-4, atol=1e-4)


def first(x, *_):
    return x[0] if isinstance(x, tuple) else x


def test_eva_spans_what_theirs_does():
    scales = torch.tensor([5.0, 4.0, 3.0, 2.0, *[1e-3] * 28])  # what truncation loses is small
    batches = [torch.randn(64, 32, generator=G) * scales + 0.3 for _ in range(6)]
    X = torch.cat(batches).double()
    inputs = Inputs(X.mT @ X / len(X), X.mean(0), len(X))
    layer = torch.nn.Sequential(torch.nn.Linear(32, 24))
    config = LoraConfig(
        r=4,
        target_modules=["0"],
        init_lora_weights="eva",
        eva_config=EvaConfig(rho=1.0, tau=0.9999),
    )
    found = get_eva_state_dict(
        layer, batches, config, forward_fn=lambda m, x: m(x),
        prepare_model_inputs_fn=None, prepare_layer_inputs_fn=first,
        show_progress_bar=False,
    )  # fmt: skip
    (rows,) = (t for n, t in found.items() if "lora_A" in n or n == "0")
    A = Eva(centre=True).factors(site(inputs=inputs)).A
    # Direction by direction; theirs is incremental and keeps r components only.
    assert float((A @ rows.double().mT).abs().diagonal().min()) > 0.999
    Vh = torch.linalg.svd(X, full_matrices=False).Vh
    A = Eva().factors(site(inputs=inputs)).A
    torch.testing.assert_close(
        (A @ Vh[:4].mT).abs(), torch.eye(4, dtype=A.dtype), rtol=0, atol=1e-9
    )
