"""Imbalanced: more rank than is needed, and factors that start at unlike sizes."""

import math
from typing import final

import torch

from fedsvd.adapters.base import Initialiser, Site
from fedsvd.errors import wrong
from fedsvd.lowrank import LowRank


@final
class Imbalanced(Initialiser):
    """A ~ N(0, a^2 / d_in) and B ~ N(0, b^2 / d_out); the frozen weight keeps W - s B A.

    The over-parameterised, imbalanced start of gradient descent on a low-rank matrix (Xiong, Ding,
    Du, ICLR 2024, arXiv 2310.01769): F = alpha_0 F~ and G = (alpha_0 / 3) G~, Gaussian entries of
    variance 1 / n, more columns than the target's rank. Convergence as exp(-Omega(alpha_0^2 T)) rests
    on the difference F^T F - G^T G, which descent hardly changes. The abstract has been checked; the
    factor 1 / 3 and the variance could not be checked against the text. Adapted: the larger factor is
    A (a = 1, b = 1 / 3), so that a strategy which trains B alone has a full-sized A, and the formula
    is the same in the transpose; s B A is taken out of W, so that the first function is the
    pretrained one; both sizes are options.

    Rows of A start at length about a, columns of B at about b. The rank is `adapter.rank`.
    """

    absorbs = True

    def __init__(self, a: float = 1.0, b: float = 1 / 3) -> None:
        for key, value in (("a", a), ("b", b)):
            if not 0 < value < math.inf:
                raise wrong(f"adapter.{key}", value, "a number above 0")
        self.a, self.b = a, b

    def factors(self, site: Site) -> LowRank:
        """Return both Gaussian factors, float64; A is drawn first."""
        d_out, d_in = site.weight.shape
        A = torch.randn(site.rank, d_in, generator=site.generator, dtype=torch.float64)
        B = torch.randn(d_out, site.rank, generator=site.generator, dtype=torch.float64)
        return LowRank(A * (self.a / math.sqrt(d_in)), B * (self.b / math.sqrt(d_out)))
