"""Robust means of clients: geometric median, density-power SVD, robust PCA. All in float64."""

import math

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
    floor = 1e-24 * (p * X.square()).sum() / len(a)
    correction = alpha / (1 + alpha) ** 1.5
    for _ in range(steps):
        sigma2 = sigma2.clamp_min(floor)
        w = p * torch.exp(-alpha * (X - a[:, None] * b).square() / (2 * sigma2))
        before = a[:, None] * b
        a = (w * X) @ b / (w @ b.square()).clamp_min(1e-300)
        b = (w * X).mT @ a / (w.mT @ a.square()).clamp_min(1e-300)
        error = (X - a[:, None] * b).square()
        w = p * torch.exp(-alpha * error / (2 * sigma2))
        left = w.sum() - len(a) * correction
        sigma2 = (w * error).sum() / left if left > 0 else sigma2
        # Weighted too, so that a client in two halves ends the iteration at the same step.
        change = (p * (a[:, None] * b - before).square()).sum()
        if change <= tolerance**2 * (p * before.square()).sum():
            break
    return a, b


def robust_pca(M: Tensor, tolerance: float = 1e-5, steps: int = 1000) -> tuple[Tensor, Tensor]:
    """Return L of low rank and sparse S with L + S = M, for (P, K) matrices of few columns.

    Principal component pursuit, min ||L||_* + ||S||_1 / sqrt(max(P, K)) (Candes, Li, Ma, Wright, JACM
    2011), by the augmented Lagrangian method of Lin, Chen, Ma (arXiv 1009.5055), until neither
    M - L - S nor the change of L exceeds tolerance ||M||; S is then what L leaves of M. The penalty
    grows by 10 % a step, and the objective ends within 1e-5 of its minimum: their 50 % is faster, but
    ends far from it for dense updates.
    """
    size = M.norm()
    if size == 0:
        return M.clone(), torch.zeros_like(M)
    weight = 1 / math.sqrt(max(M.shape))
    mu = 1.25 / torch.linalg.matrix_norm(M.mT @ M, 2).sqrt()
    L, S, Y = torch.zeros_like(M), torch.zeros_like(M), torch.zeros_like(M)
    for _ in range(steps):
        before = L
        L = _shrink_singular(M - S + Y / mu, 1 / mu)
        rest = M - L + Y / mu
        S = rest.sign() * (rest.abs() - weight / mu).clamp_min(0)
        gap = M - L - S
        Y = Y + mu * gap
        mu = mu * 1.1
        if torch.maximum(gap.norm(), (L - before).norm()) <= tolerance * size:
            break
    return L, M - L


def _shrink_singular(X: Tensor, by: Tensor) -> Tensor:
    """Return X with its singular values reduced by `by`, at least to 0, by its K x K Gram matrix.

    With few columns that takes a fraction of the time of an SVD of X.
    """
    e, V = torch.linalg.eigh(X.mT @ X)
    s = e.clamp_min(0).sqrt()
    return X @ ((V * ((s - by).clamp_min(0) / s.clamp_min(1e-300))) @ V.mT)
