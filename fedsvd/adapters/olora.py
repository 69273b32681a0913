"""OLoRA: factors from a QR decomposition of the weight."""

from typing import final

import torch

from fedsvd.adapters.base import Initialiser, Site
from fedsvd.lowrank import LowRank


@final
class Olora(Initialiser):
    """W = Q R; B = Q[:, :r] with orthonormal columns, A = R[:r]; the frozen weight is W - s B A.

    OLoRA (Büyükakyüz, 2024, arXiv 2406.01775). As in PEFT, A and B hold no scale, so that what
    moves into the factors is s Q_r R_r.
    """

    absorbs = True

    def factors(self, site: Site) -> LowRank:
        """Return the first r columns of Q and rows of R."""
        Q, R = torch.linalg.qr(site.weight.double())
        return LowRank(R[: site.rank].contiguous(), Q[:, : site.rank].contiguous())
