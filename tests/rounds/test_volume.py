"""Volume sampling of clients, against determinants of every set."""

from itertools import combinations

import numpy as np
import pytest

from fedsvd.rounds.volume import inclusion, volume_sample


def law(X, k):
    """The probability of every set of k rows, by its determinant."""
    sets = list(combinations(range(len(X)), k))
    volumes = np.array([np.linalg.det(X[list(s)] @ X[list(s)].T) for s in sets])
    return dict(zip(sets, volumes / volumes.sum(), strict=True))


def counts(X, k, draws, seed=0):
    rng, found = np.random.default_rng(seed), {}
    for _ in range(draws):
        s = tuple(sorted(volume_sample(X.tolist(), k, rng.random(len(X)), rng.random(k))))
        found[s] = found.get(s, 0) + 1
    return found


@pytest.mark.parametrize(("K", "f", "k"), [(6, 4, 3), (6, 3, 3), (5, 9, 2), (5, 5, 5), (4, 2, 1)])
def test_inclusion_is_the_sum_over_the_sets_that_hold_a_client(K, f, k):
    X = np.random.default_rng(K * f).normal(size=(K, f)) * np.arange(1, K + 1)[:, None]
    expected = [sum(p for s, p in law(X, k).items() if i in s) for i in range(K)]
    np.testing.assert_allclose(inclusion(X.tolist(), k), expected, rtol=1e-9)
    assert inclusion(X.tolist(), k).sum() == pytest.approx(k)


@pytest.mark.parametrize(("f", "k"), [(4, 3), (3, 3), (6, 2)])
def test_sets_are_drawn_as_often_as_their_volume_says(f, k):
    X = np.random.default_rng(f).normal(size=(6, f))
    n, found, p = 2000, counts(X, k, 2000), law(X, k)
    assert set(found) <= set(p)
    for s, share in p.items():
        off = abs(found.get(s, 0) - n * share)
        assert off < 4.5 * np.sqrt(n * share * (1 - share)) + 1, (s, share)
    chi2 = sum((found.get(s, 0) - n * q) ** 2 / (n * q) for s, q in p.items() if n * q > 5)
    assert chi2 < len(p) + 5 * np.sqrt(2 * len(p))


def test_by_hand():
    # One of four: in proportion to squared lengths 1, 4, 9, 16.
    X = np.diag([1.0, 2.0, 3.0, 4.0])
    np.testing.assert_allclose(inclusion(X, 1), np.array([1, 4, 9, 16]) / 30)
    # Twins are never drawn together: of {0, 1, 2} with 0 = 1, the sets are {0, 2} and {1, 2}.
    X = np.array([[1.0, 0.0], [1.0, 0.0], [0.0, 5.0]])
    np.testing.assert_allclose(inclusion(X, 2), [0.5, 0.5, 1.0])
    assert set(counts(X, 2, 200)) == {(0, 2), (1, 2)}


@pytest.mark.parametrize("scale", [1e-200, 1.0, 1e150])
def test_many_clients_leave_no_range_and_no_set_short(scale):
    X = scale * np.random.default_rng(0).normal(size=(300, 120))
    rng = np.random.default_rng(1)
    for spin in (rng.random(60), np.zeros(60), np.full(60, 1 - 2.0**-53)):
        for coin in (rng.random(300), np.zeros(300), np.full(300, 1 - 2.0**-53)):
            assert len(set(volume_sample(X, 60, coin, spin))) == 60


def test_what_spans_more_is_drawn_more():
    """Two crowds in two directions: nearly all pairs are mixed, of uniform pairs about half."""
    rng = np.random.default_rng(0)
    X = np.array([[1.0, 0.0]] * 5 + [[0.0, 1.0]] * 5) + 0.05 * rng.normal(size=(10, 2))
    found = counts(X, 2, 400)
    mixed = sum(c for (i, j), c in found.items() if (i < 5) != (j < 5))
    assert mixed > 0.95 * 400
