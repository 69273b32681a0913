"""A from rows of a Hadamard matrix."""

from typing import final

import torch
from torch import Tensor

from fedsvd.adapters.base import Initialiser, Site
from fedsvd.adapters.rows import chosen, with_zero_B
from fedsvd.lowrank import LowRank


@final
class Hadamard(Initialiser):
    """A = r rows of Sylvester's Hadamard matrix with random signs of the columns, B = 0.

    Rows and signs are from the layer's stream. Where d_in is no power of 2, rows of the next one are
    cut to d_in entries and made orthonormal again by a QR decomposition (d_in = 2^k needs none).
    """

    def factors(self, site: Site) -> LowRank:
        """Return r orthonormal rows of +-1 / sqrt(d_in), and B = 0."""
        d_in = site.weight.shape[1]
        size = 1 << (d_in - 1).bit_length()
        rows = hadamard_rows(chosen(size, site.rank, site.generator), size)[:, :d_in]
        signs = torch.randint(2, (d_in,), generator=site.generator) * 2 - 1
        A = rows * signs / d_in**0.5
        if size != d_in:
            Q, R = torch.linalg.qr(A.mT)
            A = (Q * R.diagonal().sign()).mT.contiguous()
        return with_zero_B(A, site)


def hadamard_rows(index: Tensor, size: int) -> Tensor:
    """Return rows `index` (r,) of Sylvester's matrix of a power of 2: H_ij = (-1)^popcount(i & j)."""
    common = index[:, None] & torch.arange(size)[None, :]
    parity = torch.zeros_like(common)
    while bool(common.any()):
        parity ^= common & 1
        common >>= 1
    return (1 - 2 * parity).double()
