"""LoRA-XS: only a small matrix R between fixed factors trains."""

from typing import ClassVar, final

import torch
from torch import Tensor, nn

from fedsvd.adapters.adapted import Adapted
from fedsvd.adapters.base import Parametrisation, Site, Spectrum
from fedsvd.adapters.linear import FactorLinear
from fedsvd.adapters.triplets import leading
from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import LowRank
from fedsvd.lowrank.subspace import orthonormal_columns

STARTS = ("svd", "vectors", "orthonormal")


@final
class LoraXS(Parametrisation):
    """W + s B R A with fixed A (r, d_in) and B (d_out, r); R (r, r) trains, as "<layer>.R".

    LoRA-XS (Bałazy et al., 2024, arXiv 2405.17604). `start` says where A and B come from: "svd" as
    published, A = S_r V_r^T and B = U_r of the frozen weight (the released code decomposes the
    transpose and gives A the singular values); "vectors" without the singular values, so that both
    are orthonormal; "orthonormal" random, from the layer's stream. R starts at N(0, std^2), std 1e-5
    as published, so that the first function is the pretrained one to about that; exactly with `std`
    0. With A and B fixed and equal everywhere, the mean of R is the exact mean of the updates.
    """

    tensors: ClassVar[tuple[str, ...]] = ("R",)

    def __init__(self, start: str = "svd", std: float = 1e-5) -> None:
        if start not in STARTS:
            raise one_of("adapter.start", start, STARTS)
        if std < 0:
            raise wrong("adapter.std", std, "at least 0")
        self.start, self.std = start, std
        self.preserves = std == 0
        if start != "orthonormal":
            self.spectrum = Spectrum("leading", "core", a=1.0 if start == "svd" else 0.0)

    def adapt(self, base: nn.Module, site: Site) -> "SmallCore":
        """Return the layer with its fixed factors and R."""
        r, W = site.rank, site.weight
        if self.start == "orthonormal":
            A, B = (orthonormal_columns(d, r, site.generator) for d in (W.shape[1], W.shape[0]))
            A = A.mT
        else:
            B, S, A = leading(W, r)
            if self.start == "svd":
                A = S[:, None] * A
        R = self.std * torch.randn(r, r, generator=site.generator)
        return SmallCore(base, site, LowRank(A.to(W), B.to(W)), R.to(W))


@final
class SmallCore(Adapted):
    """A frozen layer plus s B R A, of which R trains."""

    def __init__(self, base: nn.Module, site: Site, fixed: LowRank, R: Tensor) -> None:
        super().__init__(base, site.scale, site.dropout)
        self.register_buffer("A", fixed.A.contiguous(), persistent=False)
        self.register_buffer("B", fixed.B.contiguous(), persistent=False)
        self.core = FactorLinear.of(R)

    A: Tensor
    B: Tensor

    def trained(self) -> dict[str, nn.Parameter]:
        """Return R."""
        return {"R": self.core.weight}

    def update(self, x: Tensor) -> Tensor:
        """Return B R A x."""
        low = nn.functional.linear(x, self.A)
        return nn.functional.linear(self.core(low), self.B)

    def change(self) -> LowRank:
        """Return (R A, B)."""
        return LowRank(self.core.weight @ self.A, self.B)
