import math

import numpy as np
import pytest
import torch

from fedsvd.lowrank import AdapterState, LowRank, average, inner, norm, singular_values


def state(seed: int) -> AdapterState:
    g = torch.Generator().manual_seed(seed)
    return AdapterState(
        {"q": LowRank(torch.randn(2, 5, generator=g), torch.randn(4, 2, generator=g))},
        {"head.weight": torch.randn(3, 4, generator=g)},
    )


def test_tensors_round_trip_and_selection():
    s = state(0)
    assert list(s.tensors()) == ["q.A", "q.B", "head.weight"]
    assert AdapterState.from_tensors(s.tensors()).digest() == s.digest()
    assert list(s.select(("B", "extra"))) == ["q.B", "head.weight"]
    with pytest.raises(KeyError, match="nope"):
        s.update({"nope": torch.ones(1)})


def test_digest_sees_values_names_and_shapes():
    s = state(0)
    moved = s.update({"q.B": s.factors["q"].B + 1e-7})
    renamed = AdapterState({"k": s.factors["q"]}, s.extra)
    assert len({s.digest(), moved.digest(), renamed.digest()}) == 3


def test_average_by_hand():
    x, y = state(1), state(2)
    mean = average([x, y], [1.0, 3.0])
    for name, value in mean.tensors().items():
        expected = 0.25 * x.tensors()[name].numpy() + 0.75 * y.tensors()[name].numpy()
        np.testing.assert_allclose(value.numpy(), expected, rtol=1e-6)
    with pytest.raises(ValueError, match="positive"):
        average([x, y], [0.0, 0.0])
    with pytest.raises(ValueError, match="equally many"):
        average([x], [1.0, 2.0])


@pytest.mark.parametrize("clients", [1, 3])
def test_the_mean_of_one_state_is_that_state_whatever_it_goes_into(clients):
    x, y = state(1), state(2)
    assert average([y] * clients, [1.0] * clients, into=x).digest() == y.digest()


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("in_a_row", [True, False])
def test_the_mean_has_the_bits_of_one_sum_over_one_long_vector(dtype, in_a_row):
    sizes = [(300, 400), (3, 5), (7,), (300, 400), (1,)]  # pieces of a cache and less
    clients, weights = [], [0.1, 0.25, 3.0]
    for k in range(3):
        generator = torch.Generator().manual_seed(k)
        long = torch.randn(sum(map(math.prod, sizes)), generator=generator, dtype=dtype)
        parts = long.split([math.prod(size) for size in sizes])
        named = {f"t{i}": p.view(s) for i, (p, s) in enumerate(zip(parts, sizes, strict=True))}
        if in_a_row:
            same = torch.stack([named["t0"], named["t3"]])
            named["t0"], named["t3"] = same.unbind()
        clients.append((long, AdapterState({}, named)))
    mean = torch.zeros(len(clients[0][0]), dtype=torch.float64)
    for (long, _), weight in zip(clients, weights, strict=True):
        mean.add_(long, alpha=weight / sum(weights))
    expected = mean.to(dtype).split([math.prod(size) for size in sizes])
    found = average([s for _, s in clients], weights).extra
    for i, value in enumerate(expected):
        assert torch.equal(found[f"t{i}"].reshape(-1), value)


def test_inner_norm_and_singular_values_match_the_dense_product():
    x, y = state(1).factors["q"], state(2).factors["q"]
    dense_x, dense_y = x.product().double(), y.product().double()
    assert float(inner(x, y)) == pytest.approx(float((dense_x * dense_y).sum()), rel=1e-5)
    assert float(norm(x)) == pytest.approx(float(dense_x.norm()), rel=1e-6)
    expected = torch.linalg.svdvals(dense_x)[:2]
    assert torch.allclose(singular_values(x), expected, rtol=1e-5)


@pytest.mark.parametrize("clients", [1, 3])
def test_equal_clients_that_differ_from_the_start_are_taken_over(clients):
    start = AdapterState({"q": LowRank(torch.randn(2, 5), torch.zeros(4, 2))})
    one = start.update({"q.B": torch.randn(4, 2)})
    mean = average([one] * clients, [1.0] * clients, into=start)
    torch.testing.assert_close(mean.factors["q"].B, one.factors["q"].B)
    assert mean.factors["q"].A is start.factors["q"].A  # nobody trained it
