"""EVA: A spans what a layer's input varies in most, on public texts."""

from typing import final

import torch

from fedsvd.adapters.base import Initialiser, Site
from fedsvd.lowrank import LowRank


@final
class Eva(Initialiser):
    """A = the r leading right singular vectors of the layer's input activations, B = 0.

    EVA (Paischer et al., 2024, arXiv 2410.07170), without its redistribution of ranks. The vectors
    are eigenvectors of E[x x^T] over the tokens of public texts; with `centre` of the covariance,
    as PEFT's incremental PCA computes them. Their signs are fixed by their largest entry.
    """

    needs_inputs = True

    def __init__(self, centre: bool = False) -> None:
        self.centre = centre

    def factors(self, site: Site) -> LowRank:
        """Return the eigenvectors of the r largest eigenvalues as rows, and B = 0."""
        assert site.inputs is not None
        moment, mean = site.inputs.moment, site.inputs.mean
        if self.centre:
            moment = moment - torch.outer(mean, mean)
        _, vectors = torch.linalg.eigh(moment)
        A = vectors[:, -site.rank :].mT.flip(0)
        largest = A.gather(1, A.abs().argmax(dim=1, keepdim=True))
        A = A * torch.where(largest < 0, -1.0, 1.0)
        return LowRank(A.contiguous(), A.new_zeros(site.weight.shape[0], site.rank))
