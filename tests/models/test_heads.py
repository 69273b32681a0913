"""Heads that are fixed by geometry, in float64 and in a run."""

import math

import pytest
import torch

from fedsvd.errors import InputError
from fedsvd.models.fixed_heads import (
    GrassmannHead,
    equiangular,
    fixed_head,
    simplex_etf,
    subspaces,
)  # fmt: skip
from fedsvd.settings import ModelSettings

CPU = torch.device("cpu")


def g(seed=0):
    return torch.Generator().manual_seed(seed)


@pytest.mark.parametrize("classes", [2, 3, 10, 16])
def test_simplex_etf(classes):
    M = simplex_etf(16, classes, g())
    gram = torch.full((classes, classes), -1 / (classes - 1), dtype=M.dtype)
    gram.fill_diagonal_(1.0)
    torch.testing.assert_close(M @ M.mT, gram, rtol=0, atol=1e-12)
    torch.testing.assert_close(M.sum(0), torch.zeros(16, dtype=M.dtype), rtol=0, atol=1e-12)


def test_equiangular_vectors_keep_the_bound_and_few_are_orthonormal():
    for classes, cosine in ((8, 0.01), (20, 0.45), (40, 0.6)):
        V = equiangular(8, classes, cosine, g())
        gram = V @ V.mT
        torch.testing.assert_close(gram.diagonal(), torch.ones(classes, dtype=V.dtype))
        assert float((gram - torch.eye(classes, dtype=V.dtype)).abs().max()) <= cosine
    with pytest.raises(InputError, match=r"least possible is 0\.281"):
        equiangular(8, 20, 0.1, g())  # below the Welch bound, sqrt(12 / (8 x 19))
    assert math.sqrt(12 / (8 * 19)) == pytest.approx(0.281, abs=1e-3)


@pytest.mark.parametrize(("features", "classes", "dim"), [(32, 3, 8), (16, 4, 8)])
def test_grassmann_logits_are_lengths_of_projections(features, classes, dim):
    S = subspaces(features, classes, dim, g())
    eye = torch.eye(dim, dtype=S.dtype).expand(classes, dim, dim)
    torch.testing.assert_close(S @ S.mT, eye, rtol=0, atol=1e-12)
    if classes * dim <= features:
        flat = S.flatten(0, 1)
        torch.testing.assert_close(flat @ flat.mT, torch.eye(classes * dim, dtype=S.dtype))
    x = torch.randn(5, features, generator=g(1), dtype=S.dtype)
    found = GrassmannHead(S)(x)
    for n in range(5):
        for k in range(classes):
            projection = S[k].mT @ S[k] @ x[n]  # onto the subspace
            assert float(found[n, k]) == pytest.approx(float(projection.norm() / x[n].norm()))
    scaled = GrassmannHead(S)(7 * x)
    torch.testing.assert_close(scaled, found)


def values(head):
    (found,) = head.parameters()
    return found


@pytest.mark.parametrize("kind", ["etf", "equiangular", "grassmann", "grassmann_fixed"])
def test_a_head_follows_from_its_seed_alone(kind):
    before = torch.random.get_rng_state()
    one, two, other = (values(fixed_head(kind, 32, 3, seed, CPU)) for seed in (0, 0, 1))
    assert torch.equal(torch.random.get_rng_state(), before)
    assert torch.equal(one, two)
    assert not torch.equal(one, other)


@pytest.mark.parametrize("kind", ["etf", "equiangular", "grassmann"])
def test_a_head_does_not_depend_on_the_number_of_threads(kind):
    found = []
    for threads in (1, 2):
        torch.set_num_threads(threads)
        found.append(values(fixed_head(kind, 384, 100, 0, CPU)))
        assert torch.get_num_threads() == threads
    assert torch.equal(*found)


def test_what_does_not_fit_is_refused():
    with pytest.raises(InputError, match="at most 4 classes"):
        fixed_head("etf", 4, 5, 0, CPU)
    with pytest.raises(InputError, match=r"model\.head_dim: 9 is not allowed"):
        fixed_head("grassmann", 8, 3, 0, CPU, dim=9)


@pytest.mark.parametrize(
    ("head", "more", "scale", "unit"),
    [
        ("equiangular", {}, 1 / 0.07, True),
        ("equiangular", {"normalize": False}, 1 / 0.07, True),  # cosines need unit features
        ("grassmann", {"normalize": False}, 25, False),  # it divides by the length itself
        ("grassmann_fixed", {}, 25, True),
        ("etf", {"normalize": False}, 10, True),
        ("trained", {}, 10, True),
        ("frozen_random", {"normalize": False}, 1, False),
        ("equiangular", {"scale": 3.0}, 3, True),
        ("grassmann", {"scale": 3.0, "temperature": 0.5}, 2, True),
    ],
)
def test_scales_are_those_published_unless_one_is_given(head, more, scale, unit):
    settings = ModelSettings("x", head=head, **more)
    assert settings.logit_scale == pytest.approx(scale)
    assert settings.unit_features == unit
    assert settings.head_trains == (head in ("grassmann", "trained"))
