"""Subspaces, each by an orthonormal basis: steps along geodesics, and the mean of projectors."""

from collections.abc import Sequence

import torch
from torch import Tensor

SUBSPACES = "head.subspaces"  # the tensor of a state that holds bases (K, m, d) and not numbers


def orthonormalised(bases: Tensor) -> Tensor:
    """Return the orthonormal rows nearest to each basis (K, m, d), float64: the polar factor."""
    U, _, Vh = torch.linalg.svd(bases.double(), full_matrices=False)
    return U @ Vh


def geodesic(bases: Tensor, direction: Tensor) -> Tensor:
    """Return the bases at the end of the geodesics that start along `direction`, float64.

    bases S: (K, m, d), orthonormal rows. Of the direction D only the part H = D - (D S^T) S counts,
    which is tangent to the Grassmannian. With H = W diag(s) Q, the end is W (cos(s) W^T S + sin(s) Q)
    (Edelman, Arias, Smith, SIAM J. Matrix Anal. 1998, theorem 2.3), made orthonormal again.
    """
    S, D = bases.double(), direction.double()
    H = D - (D @ S.mT) @ S
    W, s, Q = torch.linalg.svd(H, full_matrices=False)
    end = W @ (s.cos().unsqueeze(-1) * (W.mT @ S) + s.sin().unsqueeze(-1) * Q)
    return orthonormalised(end)


def mean_subspaces(bases: Sequence[Tensor], weights: Sequence[float], near: Tensor) -> Tensor:
    """Return bases (K, m, d) of the subspaces that the mean projectors sum p_k P_k lead in.

    P_k projects on the rows of the k-th basis; its m leading eigenvectors are the nearest subspace
    in the sum of squared projection distances. Of all bases of it, the one nearest to `near` is
    taken. No (d, d) matrix is formed: the eigenvectors are the right singular vectors of the stacked
    sqrt(p_k) S_k. Comes back in the dtype of `near`.
    """
    total, m = float(sum(weights)), near.shape[1]
    rows = [orthonormalised(S) * (w / total) ** 0.5 for S, w in zip(bases, weights, strict=True)]
    Vh = torch.linalg.svd(torch.cat(rows, dim=1), full_matrices=False).Vh[:, :m]
    turn = orthonormalised(near.double() @ Vh.mT)
    return (turn @ Vh).to(near.dtype)
