"""EoRA: a compressed weight, and factors that make up for it."""

from typing import ClassVar, final

import torch
from torch import Tensor

from fedsvd.adapters.base import Initialiser, Site
from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import LowRank

COMPRESSIONS = ("int8", "prune")
TINY = 1e-10  # eigenvalues of E[x x^T] below this share of the largest count as it


@final
class Eora(Initialiser):
    """The frozen weight is compressed to W_c, and s B A is the best rank-r stand-in for W - W_c.

    EoRA (Liu et al., 2024, arXiv 2410.21271): with E[x x^T] = Q L Q^T over public texts,
    the r leading triplets U S V^T of (W - W_c) Q L^1/2 give B = U S^1/2 and A = S^1/2 V^T L^-1/2 Q^T,
    which minimises E ||(W - W_c - s B A) x||^2 over all of rank r. Factors are divided by sqrt s.

    `compression` "int8": every row rounded to 255 levels of its largest entry / 127; "prune": the
    `sparsity` share of entries of smallest magnitude in every row set to 0. Values stay in the
    weight's dtype: what is simulated is the compressed model's function, not its memory.
    """

    absorbs = True
    preserves = False
    needs_inputs = True
    export: ClassVar[str] = "merged"

    def __init__(self, compression: str = "int8", sparsity: float = 0.5) -> None:
        if compression not in COMPRESSIONS:
            raise one_of("adapter.compression", compression, COMPRESSIONS)
        if not 0 < sparsity < 1:
            raise wrong("adapter.sparsity", sparsity, "in (0, 1)")
        self.compression, self.sparsity = compression, sparsity

    def factors(self, site: Site) -> LowRank:
        """Return the pair that makes up for the compression on what the layer sees."""
        assert site.inputs is not None
        values, Q = torch.linalg.eigh(site.inputs.moment)
        root = values.clamp_min(TINY * float(values[-1])).sqrt()
        lost = (site.weight - self.residual(site)).double()
        U, S, Vh = torch.linalg.svd(lost @ Q * root, full_matrices=False)
        half = (S[: site.rank] / site.scale).sqrt()
        A = half[:, None] * Vh[: site.rank] / root @ Q.mT
        return LowRank(A.contiguous(), U[:, : site.rank] * half)

    def residual(self, site: Site, pair: LowRank | None = None) -> Tensor:
        """Return the compressed weight."""
        W = site.weight
        if self.compression == "int8":
            step = W.abs().amax(dim=1, keepdim=True).clamp_min(torch.finfo(W.dtype).tiny) / 127
            return (W / step).round() * step
        drop = round(self.sparsity * W.shape[1])
        index = W.abs().topk(drop, dim=1, largest=False).indices
        return W.scatter(1, index, 0.0)
