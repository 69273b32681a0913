"""PiSSA: factors from the leading singular triplets of the weight."""

from typing import final

from fedsvd.adapters.base import Initialiser, Site, Spectrum
from fedsvd.adapters.triplets import leading
from fedsvd.errors import wrong
from fedsvd.lowrank import LowRank


@final
class Pissa(Initialiser):
    """B = U_r (S_r / s)^1/2, A = (S_r / s)^1/2 V_r^T; the frozen weight keeps W - s B A.

    PiSSA (Meng et al., NeurIPS 2024, arXiv 2404.02948), equations 2 to 4, with s = alpha / r.
    Exact, or by a randomised SVD with `niter` power iterations (4 to 16 in the paper), for which
    any error stays in the frozen part.
    """

    absorbs = True
    spectrum = Spectrum("leading", "factors", a=0.5, b=0.5, divided=True)

    def __init__(self, niter: int | None = None) -> None:
        if niter is not None and niter < 0:
            raise wrong("adapter.niter", niter, "a whole number of at least 0, or null (exact)")
        self.niter = niter

    def factors(self, site: Site) -> LowRank:
        """Return the pair of the r leading triplets."""
        U, S, Vh = leading(site.weight, site.rank, site.generator, self.niter)
        root = (S / site.scale).sqrt()
        return LowRank(root[:, None] * Vh, U * root)
