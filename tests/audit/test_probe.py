"""Losses with chosen gradients, through Opacus's hooks and through plain autograd."""

import pytest
import torch
from torch import nn

from fedsvd.adapters.linear import FactorLinear
from fedsvd.adapters.scale import FactorScale
from fedsvd.audit.probe import linear_losses, places, split
from fedsvd.privacy.dpsgd import attach_hooks


def model():
    torch.manual_seed(0)
    parts = {
        "tall": FactorLinear(4, 16, True), "wide": FactorLinear(20, 3, False),
        "biased": FactorLinear(6, 2, True), "vector": FactorScale(torch.randn(7)),
    }  # fmt: skip
    built = nn.ModuleDict(parts)
    with torch.no_grad():
        for p in built.parameters():
            p.copy_(torch.randn(p.shape))
    return built


@pytest.mark.parametrize("hooked", [True, False])
def test_gradients_are_the_directions(hooked):
    built = model()
    if hooked:
        attach_hooks(built)
    named = dict(built.named_parameters())
    wanted = {n: torch.randn(5, *p.shape) for n, p in named.items()}
    losses = linear_losses(places(built, named), wanted)
    expected = sum((wanted[n] * p.detach()).flatten(1).sum(dim=1) for n, p in named.items())
    torch.testing.assert_close(losses, expected, atol=1e-4, rtol=1e-4)
    losses.sum().backward()
    for name, p in named.items():
        torch.testing.assert_close(p.grad, wanted[name].sum(dim=0), atol=1e-5, rtol=1e-4)
        if hooked:
            torch.testing.assert_close(p.grad_sample, wanted[name], atol=1e-6, rtol=1e-5)


def test_the_hook_computes_the_gradient_and_not_the_probe(monkeypatch):
    """Where the layer's hook is wrong, what arrives is wrong: the probe does not go around it."""
    from opacus.grad_sample import GradSampleModule

    real = GradSampleModule.GRAD_SAMPLERS[FactorLinear]

    def doubled(layer, activations, backprops):
        return {p: 2 * g for p, g in real(layer, activations, backprops).items()}

    monkeypatch.setitem(GradSampleModule.GRAD_SAMPLERS, FactorLinear, doubled)
    layer = nn.ModuleDict({"a": FactorLinear(3, 5, False)})
    attach_hooks(layer)
    named = dict(layer.named_parameters())
    wanted = {n: torch.randn(2, *p.shape) for n, p in named.items()}
    linear_losses(places(layer, named), wanted).sum().backward()
    torch.testing.assert_close(named["a.weight"].grad_sample, 2 * wanted["a.weight"])


def test_a_flat_vector_is_split_in_order():
    flat = torch.arange(20.0).view(2, 10)
    found = split(flat, [("a", torch.Size((2, 3))), ("b", torch.Size((4,)))])
    assert found["a"][1].tolist() == [[10, 11, 12], [13, 14, 15]]
    assert found["b"][0].tolist() == [6, 7, 8, 9]
