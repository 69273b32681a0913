"""Robust means of clients: geometric median, density-power SVD. All in float64."""

import torch
from torch import Tensor


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
    order = x.argsort(dim=-1)
    # Sums of equal weights differ in their last digits; a tie at one half must stay one.
    below = weights.expand_as(x).gather(-1, order).cumsum(-1)
    first = (below < 0.5 * below[..., -1:] * (1 - 1e-9)).sum(-1, keepdim=True)
    return x.gather(-1, order).gather(-1, first).squeeze(-1)


def rank_one(
    X: Tensor, weights: Tensor, alpha: float, tolerance: float, steps: int = 100
) -> tuple[Tensor, Tensor]:
    """Return a (P,) and b (K,) with X (P, K) = a b^T but for entries that do not fit.

    Minimum density power divergence for the model x_ik ~ N(a_i b_k, sigma^2): alternating least
    squares with weights p_k exp(-alpha e_ik^2 / (2 sigma^2)), e = X - a b^T, and sigma^2 from its own
    estimating equation (Roy, Basu, Ghosh, rSVDdpd, arXiv 2109.10680). It starts from the coordinate
    medians, where the SVD would start from the outliers.
    """
    p = weights / weights.sum()
    a = weighted_median(X, p)
    b = torch.ones_like(p)
    if not a.any():
        return a, b
    residual = X - a[:, None]
    every = p.expand_as(X).reshape(-1)
    sigma2 = (1.4826 * weighted_median(residual.abs().reshape(-1), every)) ** 2
    floor = 1e-24 * (X.square().sum(0) @ p) / len(a)
    correction = alpha / (1 + alpha) ** 1.5
    # p multiplies sums over the clients, not entries, and the three matrices are written over: at
    # the size of a large model the time goes into new memory otherwise.
    error, w, product = residual.square_(), torch.empty_like(X), torch.empty_like(X)
    for _ in range(steps):
        sigma2 = sigma2.clamp_min(floor)
        rate = float(-alpha / (2 * sigma2))
        torch.mul(error, rate, out=w).exp_()
        torch.mul(w, X, out=product)
        old_a, old_b = a, b
        a = product @ (p * b) / (w @ (p * b.square())).clamp_min(1e-300)
        b = product.mT @ a / (w.mT @ a.square()).clamp_min(1e-300)
        torch.addr(X, a, b, alpha=-1, out=error).square_()
        torch.mul(error, rate, out=w).exp_()
        left = w.sum(0) @ p - len(a) * correction
        weighted = torch.mul(w, error, out=product).sum(0) @ p
        sigma2 = weighted / left if left > 0 else sigma2
        # Weighted too, so that a client in two halves ends the iteration at the same step.
        change, size = _moved(a, b, old_a, old_b, p), (old_a @ old_a) * (p @ old_b.square())
        if change <= tolerance**2 * size:
            break
    return a, b


def _moved(a: Tensor, b: Tensor, old_a: Tensor, old_b: Tensor, p: Tensor) -> Tensor:
    """Return sum_ik p_k (a_i b_k - old_a_i old_b_k)^2, without a difference of large numbers."""
    # a b^T - a' b'^T = (a - a') b^T + a' (b - b')^T
    da, db = a - old_a, b - old_b
    cross = 2 * (da @ old_a) * ((p * b) @ db)
    return (da @ da) * (p @ b.square()) + cross + (old_a @ old_a) * (p @ db.square())
