"""Cohorts of a fixed size whose features span a large volume: k-DPP sampling."""

from collections.abc import Sequence

import numpy as np

Features = Sequence[Sequence[float]]


def volume_sample(features: Features, k: int, coins: np.ndarray, spins: np.ndarray) -> list[int]:
    """Return k clients, drawn with probability proportional to det(L_S), L = X X^T.

    X (K, f) are the clients' public features, so det(L_S) is the square of the volume that those of
    the set S span: a k-DPP with a linear kernel. Sampled exactly by algorithms 7 and 8 of Kulesza,
    Taskar, Foundations and Trends in Machine Learning 2012 (arXiv 1207.6083): k eigenvectors of L,
    then an item for each from the projection on them. `coins` (at least min(K, f)) and `spins` (k)
    are uniform on [0, 1) and all that is random. X must have rank k or more.
    """
    values, vectors = _spectrum(features)
    logs = _log_symmetric(values, k)
    chosen: list[int] = []
    for n in range(len(values), 0, -1):
        left = k - len(chosen)
        if left == 0:
            break
        log = np.log(values[n - 1]) + logs[left - 1, n - 1] - logs[left, n]
        if n == left or coins[n - 1] < np.exp(log):
            chosen.append(n - 1)
    return _from_projection(vectors[:, chosen], spins)


def inclusion(features: Features, k: int) -> np.ndarray:
    """Return the exact probability (K,) of every client to be in `volume_sample`."""
    values, vectors = _spectrum(features)
    total = _log_symmetric(values, k)[k, -1]
    rest = [_log_symmetric(np.delete(values, n), k - 1)[k - 1, -1] for n in range(len(values))]
    probability: np.ndarray = vectors**2 @ np.exp(np.log(values) + rest - total)
    return probability


def _spectrum(features: Features) -> tuple[np.ndarray, np.ndarray]:
    """Return the eigenvalues (n,) of X X^T that are not 0, and their vectors (K, n)."""
    X = np.asarray(features, dtype=np.float64)
    U, s, _ = np.linalg.svd(X, full_matrices=False)
    s, kept = s / s[0], s > s[0] * max(X.shape) * np.finfo(float).eps  # det(L_S) / s_0^2k
    return s[kept] ** 2, U[:, kept]


def _log_symmetric(values: np.ndarray, k: int) -> np.ndarray:
    """Return logs (k + 1, n + 1) of the elementary symmetric polynomials e_l of the first n values.

    In logarithms, as e_l of many values leaves the range of float64. e_0 is 1, and e_l of fewer than
    l values 0.
    """
    logs = np.full((k + 1, len(values) + 1), -np.inf)
    logs[0] = 0.0
    for n, value in enumerate(np.log(values), start=1):
        logs[1:, n] = np.logaddexp(logs[1:, n - 1], value + logs[:-1, n - 1])
    return logs


def _from_projection(V: np.ndarray, spins: np.ndarray) -> list[int]:
    """Return a sample of the DPP whose kernel is V V^T, V (K, k) with orthonormal columns.

    Item by item, with probability proportional to what is left of the diagonal of V V^T once the
    items before are eliminated, as in a Cholesky factorisation with C its columns.
    """
    left, C, items = (V**2).sum(1), np.zeros(V.shape), []
    for t, spin in enumerate(spins):
        sums = left.cumsum()
        i = int(np.searchsorted(sums, spin * sums[-1], side="right"))
        i = min(i, int(left.nonzero()[0][-1]))  # the product may round up to the total
        items.append(i)
        C[:, t] = (V @ V[i] - C[:, :t] @ C[i, :t]) / np.sqrt(left[i])
        left = np.clip(left - C[:, t] ** 2, 0, None)
        left[items] = 0.0
    return items
