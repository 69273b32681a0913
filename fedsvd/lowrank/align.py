"""Alignment of the rank components of two pairs, which are defined only up to an r x r map."""

import torch
from scipy.optimize import linear_sum_assignment
from torch import Tensor

from fedsvd.lowrank.pair import LowRank


def likeness(pair: LowRank, reference: LowRank) -> Tensor:
    """Return M = B^T B_ref + A A_ref^T, (r, r) in float64; M_ij compares component i with j."""
    ours = pair.B.double().mT @ reference.B.double()
    return ours + pair.A.double() @ reference.A.double().mT


def rotation(M: Tensor) -> Tensor:
    """Return the orthogonal R that maximises tr(R^T M): R = U V^T of M = U S V^T.

    The orthogonal Procrustes problem (Schoenemann, Psychometrika 1966). With M = `likeness` it
    minimises ||B R - B_ref||^2 + ||R^T A - A_ref||^2.
    """
    U, _, Vh = torch.linalg.svd(M)
    return U @ Vh


def permutation(M: Tensor) -> Tensor:
    """Return the permutation matrix P that maximises tr(P^T M), by linear assignment."""
    rows, columns = linear_sum_assignment(M.cpu().numpy(), maximize=True)
    P = torch.zeros_like(M)
    P[torch.as_tensor(rows), torch.as_tensor(columns)] = 1.0
    return P


def turn(pair: LowRank, R: Tensor) -> LowRank:
    """Return (R^T A, B R), the same product for an orthogonal R (r, r), in the pair's dtype."""
    A, B = R.mT @ pair.A.double(), pair.B.double() @ R
    return LowRank(A.to(pair.A.dtype), B.to(pair.B.dtype))
