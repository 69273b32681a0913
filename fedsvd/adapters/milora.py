"""MiLoRA and SoMA: factors from the last singular triplets of the weight."""

from typing import final

from fedsvd.adapters.base import Initialiser, Site, Spectrum
from fedsvd.adapters.triplets import last
from fedsvd.lowrank import LowRank


@final
class Milora(Initialiser):
    """As PiSSA with the r smallest singular values: what the pretrained weight uses least adapts.

    MiLoRA (Wang et al., NAACL 2025, arXiv 2406.09044); SoMA (Yun et al., CVPR
    2025, arXiv 2412.04077) starts in the same way. The frozen weight keeps W - s B A.
    """

    absorbs = True
    spectrum = Spectrum("last", "factors", a=0.5, b=0.5, divided=True)

    def factors(self, site: Site) -> LowRank:
        """Return the pair of the r last triplets."""
        U, S, Vh = last(site.weight, site.rank)
        root = (S / site.scale).sqrt()
        return LowRank(root[:, None] * Vh, U * root)
