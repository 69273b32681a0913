"""Medians of rows: the minimiser of a sum of l2,1 norms, by iterative reweighting."""

import torch
from torch import Tensor

from fedsvd.lowrank.robust import weighted_median


def row_medians(X: Tensor, weights: Tensor, tolerance: float, steps: int = 1000) -> Tensor:
    """Return w (K, n), sum 1 over k, such that x_i = sum_k w_ki X_ki minimises, for every row i,
    sum_k p_k ||x_i - X_ki||.

    `X` (K, n, d) holds K matrices, `weights` p (K,); so x minimises sum_k p_k ||x - X_k||_2,1 with
    ||Y||_2,1 the sum of the norms of the rows of Y. Iteratively reweighted least squares: w_ki is
    p_k over the distance of X_ki to the current x_i. Distances below `tolerance` times the row's
    median distance between points count as that, and the iteration ends when every row moves by at
    most a thousandth of it. Towards a point that is itself the minimiser it would creep, so those
    are found first (`minimal_points`). In float64.
    """
    X, p = X.double(), weights.double() / weights.sum()
    rows = X.transpose(0, 1)
    apart = torch.cdist(rows, rows, compute_mode="donot_use_mm_for_euclid_dist")
    typical = weighted_median(weighted_median(apart, p), p)
    # Half of the weight may be at one point; then the nearest other one gives the scale.
    nearest = torch.where(apart > 0, apart, torch.inf).flatten(1).min(1).values
    scale = torch.where(typical > 0, typical, nearest)
    least = tolerance * torch.where(scale.isfinite(), scale, 1.0)
    at = minimal_points(X, apart, p)
    done = at.any(0)
    w = torch.where(done, at / at.sum(0).clamp_min(1), p[:, None])
    x = (w[..., None] * X).sum(0)
    for _ in range(steps):
        new = p[:, None] / (X - x).norm(dim=-1).clamp_min(least)
        w = torch.where(done, w, new / new.sum(0))
        x, before = (w[..., None] * X).sum(0), x
        if ((x - before).norm(dim=-1) <= 1e-3 * least).all():
            break
    return w


def minimal_points(X: Tensor, apart: Tensor, p: Tensor) -> Tensor:
    """Return (K, n) whether X_ki minimises sum_j p_j ||x - X_ji||; `apart` (n, K, K) the distances.

    Exactly if the unit vectors to the others, weighted by p, add up to no more than the weight that
    is at X_ki.
    """
    found = torch.zeros(X.shape[:2], dtype=torch.bool, device=X.device)
    possible = _may_be_minimal(X, apart, p)
    for k in range(len(X)):
        rows = possible[:, k].nonzero().squeeze(-1)
        if not len(rows):
            continue
        there = apart[rows, k].mT == 0  # (K, n)
        pull = (X[:, rows] - X[k, rows]) * _over(p, apart[rows, k]).mT[..., None]
        # Half of the weight on either side of an interval is a tie; rounding must not decide it.
        least = (p[:, None] * there).sum(0) * (1 - 1e-9)
        found[k, rows] = pull.sum(0).norm(dim=-1) < least
    return found


def _may_be_minimal(X: Tensor, apart: Tensor, p: Tensor) -> Tensor:
    """Return (n, K) False where X_ki is surely none of the `minimal_points`.

    The sums of unit vectors by one product for all, whose rounding grows with the points' size over
    their distances: within that, nothing is ruled out.
    """
    rows, w = X.transpose(0, 1), _over(p, apart)
    total = w.sum(-1)
    pull = (w @ rows - rows * total[..., None]).norm(dim=-1)
    size = X.abs().amax((0, 2))[:, None] * (len(X) * X.shape[-1])
    there = ((apart == 0) * p).sum(-1)
    return pull <= there + 1e-6 + 1e-14 * size * total


def _over(p: Tensor, apart: Tensor) -> Tensor:
    """Return p over the distances along the last axis, 0 where a distance is."""
    return p / torch.where(apart == 0, torch.inf, apart)
