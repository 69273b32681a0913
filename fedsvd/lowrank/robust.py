"""Robust means of clients: geometric median (in float64), density-power SVD."""

import math

import torch
from torch import Tensor

FAR = 1e15  # single precision: an entry is at most so many times the median of medians


def geometric_median(gram: Tensor, weights: Tensor, tolerance: float, steps: int = 1000) -> Tensor:
    """Return w (K,), sum 1, such that sum w_k x_k minimises sum p_k ||x - x_k||.

    `gram` (K, K) holds the inner products of the points and `weights` p (K,). Weiszfeld's iteration
    with smoothing (Pillutla, Kakade, Harchaoui, IEEE TSP 2022, arXiv 1912.13445, algorithm 1): w_k
    is p_k over the distance of x_k to the current point, which the Gram matrix gives. Distances below
    `tolerance` times the median distance between points count as that, and the iteration ends when
    the point moves by a thousandth of it. A mean distance would let one point set the accuracy.
    """
    p = weights / weights.sum()
    square = gram.diagonal()
    apart = (square + square[:, None] - 2 * gram).clamp_min(0).sqrt()
    apart = torch.where(apart <= 1e-7 * (square + square[:, None]).sqrt(), 0.0, apart)
    if not apart.any():
        return p
    scale = weighted_median(weighted_median(apart, p), p)
    scale = scale if scale > 0 else apart[apart > 0].min()
    w = p.clone()
    for _ in range(steps):
        distance = (square - 2 * gram @ w + w @ gram @ w).clamp_min(0).sqrt()
        new = p / distance.clamp_min(float(tolerance * scale))
        new = new / new.sum()
        step, w = new - w, new
        if (step @ gram @ step).clamp_min(0).sqrt() <= 1e-3 * tolerance * scale:
            break
    return w


def weighted_median(x: Tensor, weights: Tensor) -> Tensor:
    """Return, along the last axis, the smallest entry with half of the weight at or below it."""
    x, order = x.contiguous().sort(dim=-1)  # many short rows take several times as long apart
    # Sums of equal weights differ in their last digits; a tie at one half must stay one.
    below = weights.expand_as(x).gather(-1, order).cumsum(-1)
    first = (below < 0.5 * below[..., -1:] * (1 - 1e-9)).sum(-1, keepdim=True)
    return x.gather(-1, first).squeeze(-1)


def rank_one(
    X: Tensor, weights: Tensor, alpha: float, tolerance: float, steps: int = 100
) -> tuple[Tensor, Tensor]:
    """Return a (P,) and b (K,) with X (P, K) = a b^T but for entries that do not fit.

    Minimum density power divergence for the model x_ik ~ N(a_i b_k, sigma^2): alternating least
    squares with weights p_k exp(-alpha e_ik^2 / (2 sigma^2)), e = X - a b^T, and sigma^2 from its own
    estimating equation (Roy, Basu, Ghosh, rSVDdpd, arXiv 2109.10680). It starts from the coordinate
    medians, where the SVD would start from the outliers. `X` is float32 or float64, and so is the
    work. It is fastest where the entries of a column lie in a row in memory.
    """
    p = weights.double() / weights.double().sum()
    a, b = weighted_median(X, p), torch.ones_like(X[0])
    if not a.any():
        return a, b
    # By a power of two, which is exact: squares of what counts then stay in single precision.
    scale = 2.0 ** math.frexp(float(a[a != 0].abs().median()))[1]
    a, X = a / scale, X / scale
    if X.dtype == torch.float32:
        a, X = a.clamp_(-FAR, FAR), X.clamp_(-FAR, FAR)
    error, w, product = (X - a[:, None]).abs_(), torch.empty_like(X), torch.empty_like(X)
    sigma2 = (1.4826 * median_of_columns(error, p)) ** 2
    floor = 1e-24 * (a @ a) / len(a)
    correction, least, p = alpha / (1 + alpha) ** 1.5, torch.finfo(X.dtype).tiny, p.to(X)
    # p multiplies sums over the clients, not entries, and the three matrices are written over: at
    # the size of a large model the time goes into new memory otherwise. Powers of 2 take less time
    # than those of e.
    error.square_()
    for _ in range(steps):
        sigma2 = sigma2.clamp_min(floor)
        rate = float(-alpha / (2 * math.log(2) * sigma2))
        torch.mul(error, rate, out=w).exp2_()
        torch.mul(w, X, out=product)
        old_a, old_b = a, b
        a = product @ (p * b) / (w @ (p * b.square())).clamp_min(least)
        b = product.mT @ a / (w.mT @ a.square()).clamp_min(least)
        torch.addr(X, a, b, alpha=-1, out=error).square_()
        torch.mul(error, rate, out=w).exp2_()
        left = (w @ p).sum() - len(a) * correction
        weighted = (torch.mul(w, error, out=product) @ p).sum()
        sigma2 = weighted / left if left > 0 else sigma2
        # Weighted too, so that a client in two halves ends the iteration at the same step.
        change, size = _moved(a, b, old_a, old_b, p), (old_a @ old_a) * (p @ old_b.square())
        if change <= tolerance**2 * size:
            break
    return a * scale, b


def median_of_columns(x: Tensor, weights: Tensor) -> Tensor:
    """Return the smallest entry of x (P, K) with half of the weight at or below it.

    An entry of column k has the weight `weights[k]`; none may be negative. The bits of such numbers
    are in their order as whole numbers, so halving the range of these finds it: counting a few dozen
    times takes less than sorting once.
    """
    bits = x.view(torch.int32 if x.dtype == torch.float32 else torch.int64)
    half = 0.5 * len(x) * float(weights.sum()) * (1 - 1e-9)
    low, high = -1, int(bits.max())
    while high - low > 1:
        middle = (low + high) // 2
        if float((bits <= middle).sum(0).to(weights) @ weights) >= half:
            high = middle
        else:
            low = middle
    return torch.tensor(high, dtype=bits.dtype, device=x.device).view(x.dtype)


def _moved(a: Tensor, b: Tensor, old_a: Tensor, old_b: Tensor, p: Tensor) -> Tensor:
    """Return sum_ik p_k (a_i b_k - old_a_i old_b_k)^2, without a difference of large numbers."""
    # a b^T - a' b'^T = (a - a') b^T + a' (b - b')^T
    da, db = a - old_a, b - old_b
    cross = 2 * (da @ old_a) * ((p * b) @ db)
    return (da @ da) * (p @ b.square()) + cross + (old_a @ old_a) * (p @ db.square())
