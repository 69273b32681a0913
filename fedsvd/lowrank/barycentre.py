"""The Bures-Wasserstein mean of covariances that are known by their factors. In float64."""

from collections.abc import Sequence

import torch
from torch import Tensor

from fedsvd.lowrank.align import rotation


def barycentre(
    factors: Sequence[Tensor], weights: Sequence[float], tolerance: float = 1e-9, steps: int = 200
) -> Tensor:
    """Return X (d, r), float64, such that X X^T is the mean of the S_k = B_k B_k^T.

    It minimises sum p_k W(X X^T, S_k)^2 with the Bures-Wasserstein distance W(S, T)^2 = tr S + tr T -
    2 tr (S^1/2 T S^1/2)^1/2, which is min over orthogonal O of ||X - B_k O||_F^2. The fixed-point
    iteration of Alvarez-Esteban, del Barrio, Cuesta-Albertos, Matran (J. Math. Anal. Appl. 2016,
    theorem 4.2), S <- S^-1/2 (sum p_k (S^1/2 S_k S^1/2)^1/2)^2 S^-1/2, is S <- T S T with the mean
    T of the optimal maps from S to the S_k; on factors, where no d x d matrix is formed and S may be
    singular, X <- sum p_k B_k O_k with the Procrustes rotation O_k of B_k to X. It starts from the
    mean of the B_k and ends when X moves by less than `tolerance` of its norm. The rank stays r,
    which the mean of singular covariances need not have: then it is a best one of rank r, or a local
    one. X is turned to the mean of the B_k (Procrustes), as X O has the same covariance for every O.
    """
    B = torch.stack([b.double() for b in factors])
    p = torch.tensor(weights, dtype=B.dtype, device=B.device).view(-1, 1, 1) / sum(weights)
    mean = (p * B).sum(0)
    X = mean
    for _ in range(steps):
        new = (p * (B @ rotation(B.mT @ X))).sum(0)
        moved, X = (new - X).norm(), new
        if moved <= tolerance * X.norm():
            break
    return X @ rotation(X.mT @ mean)
