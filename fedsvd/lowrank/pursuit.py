"""Principal component pursuit: a matrix as a low-rank part and a sparse one."""

import math

import torch
from torch import Tensor

GROWTH = 1.1  # of the penalty, a step
SHARE = 0.2  # of the tolerance, that rounding a step's Gram matrix to the work's dtype may use up
PART = 32  # a sum's first part is one over this; if it is too large already, the rest is not needed


def robust_pca(M: Tensor, tolerance: float = 1e-5, steps: int = 1000) -> tuple[Tensor, Tensor]:
    """Return L of low rank and sparse S with L + S = M, for (K, P) matrices of few rows.

    Principal component pursuit, min ||L||_* + ||S||_1 / sqrt(max(K, P)) (Candes, Li, Ma, Wright, JACM
    2011), by the augmented Lagrangian method of Lin, Chen, Ma (arXiv 1009.5055), until neither
    M - L - S nor the change of L exceeds tolerance ||M||; S is then what L leaves of M. The penalty
    grows by 10 % a step, and the objective ends within 1e-5 of its minimum: their 50 % is faster, but
    ends far from it for dense updates. `M` is float32 or float64, and so is the work, but for Gram
    matrices that float32 would not hold: it ends within the tolerance of what float64 gives.

    With R = M - L + Y / mu a step is S = R - C and Y <- mu C, where C is R with entries cut at
    +-1 / (mu sqrt(max(K, P))), so M - L - S = C - Y / mu.
    """
    if not M.any():
        return M.clone(), torch.zeros_like(M)
    # By a power of two, which is exact: squares of the largest float32 would be infinite.
    scale = 2.0 ** math.frexp(float(M.abs().max()))[1]
    M = M / scale
    weight, limit = 1 / math.sqrt(max(M.shape)), tolerance * float(M.double().norm())
    largest = float(torch.linalg.eigvalsh(_gram(M, True))[-1])
    by = largest**0.5 / 1.25  # 1 / mu
    X, V = M.clone(), M.clone()  # M - S + Y / mu and M + Y / mu
    L, before, C, old, R = (torch.zeros_like(M) for _ in range(5))
    for _ in range(steps):
        L, before, C, old = before, L, old, C
        # The error of an eigenvalue over the penalty bounds that of L.
        fine = torch.finfo(M.dtype).eps * largest > SHARE * limit * by
        e, Q = torch.linalg.eigh(_gram(X, fine))
        largest = float(e[-1])
        torch.mm(_shrinkage(e, Q, by).to(M), X, out=L)
        torch.sub(V, L, out=R)
        torch.clamp(R, -weight * by, weight * by, out=C)
        if _near(L, before, 1.0, limit) and _near(C, old, 1 / GROWTH, limit):
            break
        torch.add(M, C, alpha=1 / GROWTH, out=V)
        torch.sub(C, R, out=X).add_(V)
        by /= GROWTH
    return L * scale, (M - L) * scale


def _gram(X: Tensor, fine: bool) -> Tensor:
    """Return X X^T as float64, computed so (`fine`) or in the dtype of X."""
    X = X.double() if fine else X
    return (X @ X.mT).double()


def _shrinkage(e: Tensor, Q: Tensor, by: float) -> Tensor:
    """Return W (K, K) such that W X is X with its singular values reduced by `by`, at least to 0.

    X X^T = Q diag(e) Q^T. With few rows that takes a fraction of the time of an SVD of X.
    """
    s = e.clamp_min(0).sqrt()
    return (Q * ((s - by).clamp_min(0) / s.clamp_min(1e-300))) @ Q.mT


def _near(x: Tensor, y: Tensor, times: float, limit: float) -> bool:
    """Return whether ||x - times y|| <= limit; most often the first columns say that it is not."""
    total, first = 0.0, x.shape[1] // PART
    for columns in (slice(first), slice(first, None)):
        rest = torch.sub(x[:, columns], y[:, columns], alpha=times)
        total += float(rest.square_().sum())
        if total > limit**2:
            return False
    return True
