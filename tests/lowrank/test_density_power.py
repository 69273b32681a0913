"""The density-power fit of rank one against its equations, entry by entry, in NumPy."""

import numpy as np
import pytest
import torch

from fedsvd.lowrank.robust import median_of_columns, rank_one


def weighted_median(x, p):
    order = np.argsort(x)
    return x[order][np.searchsorted(np.cumsum(p[order]), 0.5 * p.sum() * (1 - 1e-9))]


def reference(X, p, alpha, tolerance):
    p = p / p.sum()
    a, b = np.array([weighted_median(row, p) for row in X]), np.ones(len(p))
    weights = np.broadcast_to(p, X.shape)
    spread = weighted_median(np.abs(X - a[:, None]).ravel(), weights.ravel())
    sigma2, floor = (1.4826 * spread) ** 2, 1e-24 * (a**2).mean()
    steps = 0
    while steps < 100:
        steps += 1
        sigma2 = max(sigma2, floor)
        before = np.outer(a, b)
        w = p * np.exp(-alpha * (X - before) ** 2 / (2 * sigma2))
        a = np.array([(w[i] * X[i] * b).sum() / (w[i] * b**2).sum() for i in range(len(a))])
        b = np.array(
            [(w[:, k] * X[:, k] * a).sum() / (w[:, k] * a**2).sum() for k in range(len(b))]
        )
        error = (X - np.outer(a, b)) ** 2
        w = p * np.exp(-alpha * error / (2 * sigma2))
        left = w.sum() - len(a) * alpha / (1 + alpha) ** 1.5
        sigma2 = (w * error).sum() / left if left > 0 else sigma2
        change = (p * (np.outer(a, b) - before) ** 2).sum()
        if change <= tolerance**2 * (p * before**2).sum():
            break
    return np.outer(a, b), steps


@pytest.mark.parametrize("tolerance", [1e-2, 1e-4, 1e-8])
@pytest.mark.parametrize("kind", ["noise", "common", "gross errors"])
def test_the_fit_solves_its_equations_and_ends_where_they_say(kind, tolerance):
    rng = np.random.default_rng(0)
    X = 0.1 * rng.normal(size=(300, 9))
    if kind != "noise":
        X += np.outer(rng.normal(size=300), 1 + 0.3 * rng.normal(size=9))
    if kind == "gross errors":
        X = np.where(rng.random(X.shape) < 0.1, 1e30, X)
    p = rng.uniform(0.5, 1.5, size=9)
    expected, steps = reference(X, p, 0.3, tolerance)

    def fitted(**options):
        a, b = rank_one(torch.tensor(X), torch.tensor(p), 0.3, tolerance, **options)
        return np.outer(a.numpy(), b.numpy())

    size = np.linalg.norm(expected)
    assert np.linalg.norm(fitted() - expected) < 1e-11 * size
    if tolerance > 1e-8:  # one step fewer is another fit
        assert np.linalg.norm(fitted(steps=steps - 1) - expected) > 1e-9 * size


@pytest.mark.parametrize("kind", ["noise", "common", "gross errors", "alike"])
def test_single_precision_gives_the_same_fit(kind):
    rng = np.random.default_rng(1)
    common = np.outer(rng.normal(size=300), 1 + 0.3 * rng.normal(size=9))
    X = 1e-12 * common + (0 if kind == "alike" else 1e-13 * rng.normal(size=(300, 9)))
    if kind == "noise":
        X -= 1e-12 * common
    if kind == "gross errors":
        X = np.where(rng.random(X.shape) < 0.1, 1e30, X)
    p = torch.tensor(rng.uniform(0.5, 1.5, size=9))
    single = torch.tensor(X, dtype=torch.float32)
    a, b = rank_one(single, p, 0.3, 1e-4)
    assert a.dtype == b.dtype == torch.float32
    c, d = rank_one(single.double(), p, 0.3, 1e-4)
    found, expected = torch.outer(a, b), torch.outer(c, d)
    off = (found - expected).norm(dim=1) / expected.norm(dim=1)
    # In a row most of whose entries are gross errors the fit is one of them, but in no other row.
    held = single.median(dim=1).values.abs() < 1
    assert held.sum() > 290
    assert off[held].max() < 1e-4


def test_the_median_of_columns_counts_every_entry_for_its_column():
    rng = np.random.default_rng(2)
    for x in (rng.random((40, 7)), rng.integers(0, 4, (40, 7)).astype(float), np.zeros((3, 7))):
        p = rng.random(7)
        expected = weighted_median(x.ravel(), np.broadcast_to(p, x.shape).ravel())
        assert median_of_columns(torch.tensor(x), torch.tensor(p)).item() == expected
        single = torch.tensor(x, dtype=torch.float32).mT.contiguous().mT
        assert median_of_columns(single, torch.tensor(p)).item() == np.float32(expected)
