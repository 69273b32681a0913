"""A from rows of the discrete cosine transform."""

from typing import final

import torch

from fedsvd.adapters.base import Initialiser, Site
from fedsvd.adapters.rows import chosen, with_zero_B
from fedsvd.errors import one_of
from fedsvd.lowrank import LowRank
from fedsvd.lowrank.subspace import dct_rows

CHOICES = ("low", "random")


@final
class Dct(Initialiser):
    """A = r orthonormal basis vectors of the DCT-II of length d_in, B = 0.

    `rows` "low": frequencies 0 to r - 1; "random": r of them, drawn from the layer's stream.
    """

    def __init__(self, rows: str = "random") -> None:
        if rows not in CHOICES:
            raise one_of("adapter.rows", rows, CHOICES)
        self.rows = rows

    def factors(self, site: Site) -> LowRank:
        """Return the chosen cosines as rows of A, and B = 0."""
        d_in = site.weight.shape[1]
        low = torch.arange(site.rank)
        index = low if self.rows == "low" else chosen(d_in, site.rank, site.generator)
        return with_zero_B(dct_rows(index, d_in), site)
