"""Singular triplets of a frozen weight: leading or last, exact or randomised."""

import torch
from torch import Generator, Tensor

OVERSAMPLING = 8


def leading(
    weight: Tensor, count: int, generator: Generator | None = None, niter: int | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (d_out, k), S (k,), Vh (k, d_in) of the k largest singular values, float64.

    Exact without `niter`. With it, a randomised SVD of that many power iterations (Halko,
    Martinsson, Tropp, SIAM Review 2011, algorithms 4.4 and 5.1) on a Gaussian sketch of k + 8
    columns from `generator`, at the weight's device.
    """
    if niter is None:
        U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
        return _signed(U[:, :count], S[:count], Vh[:count])
    W = weight.double()
    columns = min(count + OVERSAMPLING, *W.shape)
    sketch = torch.randn(W.shape[1], columns, generator=generator, dtype=torch.float64)
    Q, _ = torch.linalg.qr(W @ sketch.to(W.device))
    for _ in range(niter):
        Z, _ = torch.linalg.qr(W.mT @ Q)
        Q, _ = torch.linalg.qr(W @ Z)
    U, S, Vh = torch.linalg.svd(Q.mT @ W, full_matrices=False)
    return _signed(Q @ U[:, :count], S[:count], Vh[:count])


def last(weight: Tensor, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U, S, Vh as `leading` does, of the k smallest singular values, still descending."""
    U, S, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return _signed(U[:, -count:], S[-count:], Vh[-count:])


def _signed(U: Tensor, S: Tensor, Vh: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Make the largest entry of every row of Vh positive: the SVD leaves the sign open."""
    largest = Vh.gather(1, Vh.abs().argmax(dim=1, keepdim=True))
    sign = torch.where(largest < 0, -1.0, 1.0)
    return U * sign.mT, S, Vh * sign
