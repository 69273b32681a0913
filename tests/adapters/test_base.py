"""A dense update of the frozen weight: what the model computes, and that it leaves no trace."""

from dataclasses import replace

import torch

from fedsvd.exports.export import with_base
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.strategies import FedEx, Flora
from fedsvd.testing import make_updates, total
from tests.conftest import tiny_batch, tiny_classifier


def started(model):
    """The model's own state: its factors with B not 0, in float64."""
    tensors = {n: t.double() for n, t in model.initial.tensors().items()}
    return model.read(AdapterState.from_tensors(tensors))


def test_the_model_computes_with_the_updated_weight_and_gets_the_old_one_back():
    model = tiny_classifier("AB")
    state, (inputs, _) = started(model), tiny_batch(5)
    plain = model(inputs)
    before = {n: p.detach().clone() for n, p in model.named_parameters()}
    g = torch.Generator().manual_seed(3)
    layer = list(state.factors)[1]
    W = 0.1 * torch.randn(16, 16, generator=g, dtype=torch.float64)
    for _ in range(2):  # twice: it must not add up
        model.write(replace(state, base={layer: W}))
    changed = model(inputs)
    module = model.layers[layer]
    scale = module.scaling["default"]
    name = next(n for n, p in model.named_parameters() if p is module.get_base_layer().weight)
    expected = before[name] + scale * W
    assert torch.equal(module.get_base_layer().weight, expected)
    assert float((changed - plain).detach().norm()) > 1e-3
    model.write(state)
    assert all(torch.equal(p, before[n]) for n, p in model.named_parameters())
    assert torch.equal(model(inputs), plain)
    assert set(dict(model.state_dict())) == set(before)  # what is kept aside is not saved


def test_flora_and_fedex_compute_what_the_mean_of_the_clients_updates_does():
    model = tiny_classifier("AB")
    state, (inputs, _) = replace(started(model), round=1), tiny_batch(5)
    results = []
    for rule in (Flora(), FedEx()):
        updates = make_updates(rule, state)
        new = rule.aggregate(state, updates)
        model.write(new)
        results.append(model(inputs).detach())
        mean = {k: sum(u.weight * total(u.state, k) for u in updates) for k in state.factors}
    zeros = {k: LowRank(p.A, 0 * p.B) for k, p in state.factors.items()}
    model.write(replace(state, factors=zeros, base=mean))
    dense = model(inputs).detach()
    for found in results:
        torch.testing.assert_close(found, dense, rtol=1e-9, atol=1e-9)


def test_an_update_with_a_base_is_exported_as_factors_of_its_rank():
    g = torch.Generator().manual_seed(0)
    pair = LowRank(torch.randn(2, 6, generator=g), torch.randn(5, 2, generator=g))
    W = torch.randn(5, 1, generator=g) @ torch.randn(1, 6, generator=g)
    small = LowRank(torch.randn(2, 2, generator=g), torch.randn(5, 2, generator=g))
    out = with_base({"x": pair, "y": small}, {"x": W})
    assert {p.rank for p in out.values()} == {3}
    torch.testing.assert_close(out["x"].product(), pair.product() + W, rtol=1e-5, atol=1e-5)
    torch.testing.assert_close(out["y"].product(), small.product(), rtol=1e-5, atol=1e-5)
