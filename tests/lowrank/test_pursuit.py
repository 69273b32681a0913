"""Robust PCA against the augmented Lagrangian method as it is written, with SVDs by NumPy."""

import numpy as np
import pytest
import torch

from fedsvd.lowrank.pursuit import robust_pca

CASES = ("noise", "common", "strong", "outlier", "sparse", "tall")


def drawn(name):
    rng = np.random.default_rng(0)
    noise, common = rng.normal(size=(12, 700)), rng.normal(size=700)
    scale = 1 + 0.3 * rng.normal(size=(12, 1))
    M = {
        "noise": 0.1 * noise,
        "common": 0.1 * noise + 0.3 * scale * common,
        # Singular values a thousandth of the first decide what L is.
        "strong": 0.003 * noise + scale * common,
        "outlier": 0.1 * noise + np.where(np.arange(12)[:, None] == 4, 1e3 * common, 0.0),
        "sparse": 0.01 * noise + scale * common + 3 * noise * (rng.random(noise.shape) < 0.05),
        "tall": 0.1 * rng.normal(size=(50, 30)),
    }[name]
    return M.astype(np.float32).astype(np.float64)


def reference(M, tolerance=1e-5, growth=1.2, relax=1.7):
    """L, all matrices kept, and the number of steps."""
    weight, mu = 1 / np.sqrt(max(M.shape)), 1.25 / np.linalg.norm(M, 2)
    S, Y = np.zeros_like(M), np.zeros_like(M)
    steps = 0
    while steps < 999:
        steps += 1
        before = S
        U, s, Vh = np.linalg.svd(M - S + Y / mu, full_matrices=False)
        L = (U * np.maximum(s - 1 / mu, 0)) @ Vh
        beyond = relax * L + (1 - relax) * (M - S)
        X = M - beyond + Y / mu
        S = np.sign(X) * np.maximum(np.abs(X) - weight / mu, 0)
        gap = M - beyond - S
        Y, mu = Y + mu * gap, growth * mu
        limit = tolerance * np.linalg.norm(M)
        if max(np.linalg.norm(gap), np.linalg.norm(S - before)) <= limit:
            break
    return L, steps


def cost(L, M):
    return np.linalg.norm(L, "nuc") + np.abs(M - L).sum() / np.sqrt(max(M.shape))


@pytest.mark.parametrize("name", CASES)
@pytest.mark.parametrize(("dtype", "most"), [(torch.float64, 1e-9), (torch.float32, 5e-6)])
def test_the_steps_are_those_of_the_method(name, dtype, most):
    M = drawn(name)
    L, S = robust_pca(torch.tensor(M, dtype=dtype))
    assert L.dtype == S.dtype == dtype
    expected, steps = reference(M)
    off = np.linalg.norm(L.double().numpy() - expected) / np.linalg.norm(M)
    assert off < most
    # One step fewer would be further off than that, so that the step at which it ends counts too.
    if dtype == torch.float64:
        short = robust_pca(torch.tensor(M), steps=steps - 1)[0].numpy()
        assert np.linalg.norm(short - expected) / np.linalg.norm(M) > 10 * most
    torch.testing.assert_close(L.double() + S.double(), torch.tensor(M), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize(("name", "most"), [(n, 3e-4 if n == "outlier" else 2e-5) for n in CASES])
def test_it_ends_near_the_minimum_that_a_slow_method_finds(name, most):
    M = drawn(name)
    found = cost(robust_pca(torch.tensor(M))[0].numpy(), M)
    assert found <= cost(reference(M, 1e-8, 1.03, 1.0)[0], M) * (1 + most)


@pytest.mark.parametrize("size", [1e-35, 1e36])
def test_sizes_at_the_ends_of_single_precision(size):
    M = torch.tensor(drawn("common"), dtype=torch.float32)
    L, S = robust_pca(M)
    for ours, theirs in zip(robust_pca(M * size), (L, S), strict=True):
        torch.testing.assert_close(ours / size, theirs, rtol=1e-4, atol=1e-4)


def test_nothing_is_split_into_nothing():
    L, S = robust_pca(torch.zeros(3, 5))
    assert not L.any()
    assert not S.any()
