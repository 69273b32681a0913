"""A robust low-rank fit of several matrices: l1 loss, factors, sub-gradient steps."""

import torch
from torch import Tensor

from fedsvd.lowrank.average import CACHED
from fedsvd.lowrank.pair import LowRank
from fedsvd.lowrank.robust import weighted_median


def robust_fit(
    X: Tensor, weights: Tensor, rank: int, init: float, step: float, decay: float, steps: int
) -> LowRank | None:
    """Return factors of rank `rank`, float64, that about minimise sum_k p_k ||B A - X_k||_1.

    `X` (K, m, n) holds the matrices, `weights` p (K,); the norm is the sum of absolute entries. From
    G = sum_k p_k sign(B A - X_k) the steps are B -= eta_t G A^T and A -= eta_t B^T G at once, with
    eta_t = step decay^t / sqrt(m n) (geometrically decaying: Li, Zhu, So, Vidal, SIAM J. Optim.
    2020, arXiv 1809.09237). B A starts small, so that a rank that is too high does no harm (Ma,
    Fattahi, 2022, arXiv 2202.08788): as the best approximation of that rank of sum_k p_k sign(X_k),
    with balanced factors and `init` times the clients' median norm. The last iterate is returned;
    its error is about that of the last step. None where half of the weight or more is at 0, which is
    the minimiser then.
    """
    p, shape = weights.double() / weights.sum(), X.shape[1:]
    size = weighted_median(X.double().flatten(1).norm(dim=1), p)
    if size == 0:
        return None

    # In parts that stay in a processor's cache while the signs of all clients are added.
    rows, shares = max(1, CACHED // shape[1]), p.tolist()

    def slope(B: Tensor, A: Tensor) -> Tensor:
        Z, G = B @ A, torch.zeros(shape, dtype=torch.float64, device=X.device)
        signs = torch.empty_like(G[:rows])
        for z, g, *of in zip(
            Z.split(rows), G.split(rows), *(x.split(rows) for x in X), strict=True
        ):
            for share, x in zip(shares, of, strict=True):
                g.add_(torch.sub(z, x, out=signs[: len(z)]).sign_(), alpha=share)
        return G

    zero = X.new_zeros(1, dtype=torch.float64)
    U, S, Vh = torch.linalg.svd(-slope(zero.expand(shape[0], 1), zero.expand(1, shape[1])), False)
    root = (init * size * S[:rank] / S[:rank].norm()).sqrt()
    B, A = U[:, :rank] * root, root[:, None] * Vh[:rank]
    for t in range(steps):
        G = slope(B, A) * (step * decay**t / (shape[0] * shape[1]) ** 0.5)
        B, A = B - G @ A.mT, A - B.mT @ G
    return LowRank(A, B)
