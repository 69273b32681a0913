"""The small change of B that turns B A towards another matrix, in factored form."""

import torch
from torch import Tensor

POINTS = 65  # of the penalty's strength in a pass
PASSES = 8  # each looks closer at two of the last one's intervals


def turned(B: Tensor, C: Tensor, H: Tensor, size: Tensor, penalty: float) -> Tensor:
    """Return the X (d_out, r) that maximises cos(X A, G) - penalty ||X - B||_F.

    It takes C = A A^T (r, r), H = G A^T (d_out, r) and `size` = ||G||_F, all float64, and never the
    d_out x d_in matrices. The whole matrices are compared, as vectors. Where G or B A is 0, or no X
    does better, B comes back.

    With ||X - B|| bounded, the cosine is a linear over a convex function: a stationary point is its
    maximum. Such points are X(mu) = (tau H + mu B)(C + mu I)^-1, ridge solutions for a target tau G
    whose length tau = ||X A||^2 / <G, X A> is free; for each mu this is a quadratic in tau with one
    positive root. So the maximum lies on a curve of one parameter, in the eigenbasis of C and in the
    at most 2 r directions that B and H span, and is found there over 16 decades of mu.
    """
    e, V = torch.linalg.eigh(C)
    e = e.clamp_min(0)
    Q, both = torch.linalg.qr(torch.cat([B @ V, H @ V], dim=1))
    b, h = both.split(len(e), dim=1)
    start = (e * b.square()).sum()
    if not size > 0 or not start > 0:
        return B
    best, found = (h * b).sum() / (size * start.sqrt()), b
    low, high = e.max().log10() - 8, e.max().log10() + 8
    for _ in range(PASSES):
        points = torch.linspace(float(low), float(high), POINTS, dtype=e.dtype, device=e.device)
        X = _ridges(b, e, h, 10**points)
        cosine = (X * h).sum((1, 2)) / (size * (e * X.square()).sum((1, 2)).sqrt())
        value = cosine - penalty * (X - b).square().sum((1, 2)).sqrt()
        i = int(value.argmax())
        if value[i] > best:
            best, found = value[i], X[i]
        low, high = points[max(i - 1, 0)], points[min(i + 1, POINTS - 1)]
    return B if found is b else Q @ found @ V.mT


def _ridges(b: Tensor, e: Tensor, h: Tensor, mu: Tensor) -> Tensor:
    """Return X(mu) (n, 2 r, r) for every mu (n,), in the basis in which C is diag(e)."""
    mu = mu[:, None, None]
    P, R = h / (e + mu), mu * b / (e + mu)
    # ||X A||^2 = tau <G, X A> for X = tau P + R.
    square = mu.squeeze() * P.square().sum((1, 2))
    linear = ((mu - e) * P * R).sum((1, 2))
    constant = -(e * R.square()).sum((1, 2))
    root = (linear.square() - 4 * square * constant).clamp_min(0).sqrt()
    # The stable form of (root - linear) / (2 square).
    tau = torch.where(linear > 0, -2 * constant / (root + linear), (root - linear) / (2 * square))
    return tau[:, None, None] * P + R
