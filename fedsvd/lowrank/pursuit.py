"""Principal component pursuit: a matrix as a low-rank part and a sparse one."""

import math

import torch
from torch import Tensor

GROWTH = 1.2  # of the penalty, a step
RELAX = 1.7  # how far a step goes beyond L, as over-relaxation does; 1 goes to L
SHARE = 0.2  # of the tolerance, that rounding a step's Gram matrix to the work's dtype may use up
PART = 32  # a sum's first part is one over this; if it is too large already, the rest is not needed


def robust_pca(M: Tensor, tolerance: float = 1e-5, steps: int = 1000) -> tuple[Tensor, Tensor]:
    """Return L of low rank and sparse S with L + S = M, for (K, P) matrices of few rows.

    Principal component pursuit, min ||L||_* + ||S||_1 / sqrt(max(K, P)) (Candes, Li, Ma, Wright, JACM
    2011), by the augmented Lagrangian method of Lin, Chen, Ma (arXiv 1009.5055) with over-relaxation
    (Boyd et al., Foundations and Trends in Machine Learning 2011, section 3.4.3), until neither the
    gap of a step nor the change of S exceeds tolerance ||M||; S is then what L leaves of M. The
    penalty grows by 20 % a step, and the objective ends within 2e-5 of its minimum for updates of
    like size: their 50 % without over-relaxation ends far from it for dense ones. `M` is float32 or
    float64, and so is the work, but for Gram matrices that float32 would not hold: it ends within
    the tolerance of what float64 gives.

    With X = M - S + Y / mu a step is L = the matrix X with its singular values reduced by 1 / mu,
    R = M - (a L + (1 - a) (M - S)) + Y / mu, a = `RELAX`, S <- R - C and Y <- mu C, where C is R with
    entries cut at +-1 / (mu sqrt(max(K, P))). Its gap is M - (a L + (1 - a) (M - S)) less the new S.
    """
    if not M.any():
        return M.clone(), torch.zeros_like(M)
    # By a power of two, which is exact: squares of the largest float32 would be infinite.
    scale = 2.0 ** math.frexp(float(M.abs().max()))[1]
    M = M / scale
    weight, limit = 1 / math.sqrt(max(M.shape)), tolerance * float(M.double().norm())
    largest = float(torch.linalg.eigvalsh(_gram(M, True))[-1])
    by = largest**0.5 / 1.25  # 1 / mu
    X, S, old, R = M.clone(), torch.zeros_like(M), torch.empty_like(M), torch.empty_like(M)
    whole = torch.eye(len(M), dtype=torch.float64, device=M.device)
    for left in range(steps, 0, -1):
        # The error of an eigenvalue over the penalty bounds that of L.
        fine = torch.finfo(M.dtype).eps * largest > SHARE * limit * by
        e, Q = torch.linalg.eigh(_gram(X, fine))
        largest = float(e[-1])
        W = _shrinkage(e, Q, by)  # L is W X
        S, old = old, S
        torch.add(old, M, alpha=(RELAX - 1) / (2 - RELAX), out=R)
        R.addmm_((whole - RELAX * W).to(M), X, beta=2 - RELAX)
        torch.ops.aten.softshrink.out(R, weight * by, out=S)
        if left == 1 or _ended(M, X, R, S, old, limit):
            break
        torch.add(M, R, alpha=1 / GROWTH, out=X)
        X.sub_(S, alpha=1 + 1 / GROWTH)
        by /= GROWTH
    L = W.to(M) @ X
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


def _ended(M: Tensor, X: Tensor, R: Tensor, S: Tensor, old: Tensor, limit: float) -> bool:
    """Return whether neither the gap nor the change of S exceeds `limit`.

    Most often the first columns say that one does.
    """
    gap, change, first = 0.0, 0.0, M.shape[1] // PART
    for k in (slice(first), slice(first, None)):
        change += float((S[:, k] - old[:, k]).square_().sum())
        # Y / mu is X - M + S as it was; what the step left of it is R - S.
        rest = (M[:, k] - X[:, k]).sub_(old[:, k]).add_(R[:, k]).sub_(S[:, k])
        gap += float(rest.square_().sum())
        if max(gap, change) > limit**2:
            return False
    return True
