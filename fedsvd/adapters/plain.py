"""LoRA: a random A, and B = 0."""

from typing import final

from fedsvd.adapters.base import Initialiser, Site
from fedsvd.adapters.initial import INITIALISERS
from fedsvd.errors import one_of
from fedsvd.lowrank import LowRank


@final
class Lora(Initialiser):
    """W + s B A with B = 0 and A Kaiming-uniform, Gaussian or with orthonormal rows.

    LoRA (Hu et al., ICLR 2022, arXiv 2106.09685); see `fedsvd.adapters.initial`.
    """

    def __init__(self, init: str = "kaiming") -> None:
        if init not in INITIALISERS:
            raise one_of("adapter.init", init, INITIALISERS)
        self.init = init

    def factors(self, site: Site) -> LowRank:
        """Return the factors of the named start."""
        return INITIALISERS[self.init](site.weight, site.rank, site.scale, site.generator)
