"""SORSA: leading singular triplets train, held orthonormal by a regulariser."""

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from fedsvd.adapters.adapted import Adapted, set_weight
from fedsvd.adapters.base import Parametrisation, Site, Spectrum
from fedsvd.adapters.linear import FactorLinear
from fedsvd.adapters.scale import FactorScale
from fedsvd.adapters.triplets import leading
from fedsvd.errors import wrong
from fedsvd.lowrank import LowRank, difference


@final
class Sorsa(Parametrisation):
    """W = U_r diag(S_r) V_r^T + frozen residual; U, S and V train, as "<layer>.U", ".S", ".Vh".

    SORSA (Cao, 2024, arXiv 2409.00055), with the regulariser L_reg, the mean over all U and V of the
    model of ||U^T U - I||_F, unsquared. In a step the weights move by -gamma (lr_t / lr_0) grad L_reg
    beside the optimiser's own move: gamma is a rate by itself, so its strength does not depend on the
    learning rate's size. L_reg looks at no data and acts after clipping and noise. alpha is not used.

    The released code adds (gamma / lr_0) grad L_reg to the gradient after clipping. With plain SGD
    that is the same move. Its AdamW then divides it by the root of the second moment; here AdamW
    does not see it, as the paper's formula has it, and momentum does not repeat it.
    """

    tensors: ClassVar[tuple[str, ...]] = ("U", "S", "Vh")
    decoupled: ClassVar[bool] = True
    spectrum = Spectrum("leading", "triplets")

    def __init__(self, gamma: float = 4e-4) -> None:
        if gamma < 0:
            raise wrong("adapter.gamma", gamma, "at least 0")
        self.gamma = gamma

    def adapt(self, base: nn.Module, site: Site) -> "Triplets":
        """Return the layer with its r leading triplets apart."""
        return Triplets(base, site, *leading(site.weight, site.rank))

    def penalty(self, layers: Sequence[Adapted]) -> Tensor | None:
        """Return gamma times the mean distance from orthonormality."""
        if not self.gamma:
            return None
        apart = []
        for layer in layers:
            assert isinstance(layer, Triplets)
            apart += [gram_error(layer.U.weight.mT).norm(), gram_error(layer.Vh.weight).norm()]
        return self.gamma * torch.stack(apart).mean()


def gram_error(rows: Tensor) -> Tensor:
    """Return R R^T - I (r, r) for rows R (r, d): 0 where they are orthonormal."""
    return rows @ rows.mT - torch.eye(len(rows), dtype=rows.dtype, device=rows.device)


@final
class Triplets(Adapted):
    """A residual layer plus U diag(S) Vh, all three of which train."""

    def __init__(self, base: nn.Module, site: Site, U: Tensor, S: Tensor, Vh: Tensor) -> None:
        super().__init__(base, 1.0, site.dropout)
        W = site.weight
        set_weight(base, (W.double() - (U * S) @ Vh).to(W))
        self.U, self.Vh = FactorLinear.of(U.to(W)), FactorLinear.of(Vh.to(W))
        self.S = FactorScale(S.to(W))
        for name, t in (("B0", U * S), ("A0", Vh)):
            self.register_buffer(name, t.to(W).contiguous(), persistent=False)

    B0: Tensor
    A0: Tensor

    def trained(self) -> dict[str, nn.Parameter]:
        """Return U, S and Vh."""
        return {"U": self.U.weight, "S": self.S.weight, "Vh": self.Vh.weight}

    def update(self, x: Tensor) -> Tensor:
        """Return U diag(S) Vh x."""
        out: Tensor = self.U(self.S(self.Vh(x)))
        return out

    def change(self) -> LowRank:
        """Return factors of twice the rank: the triplets now, less those of the start."""
        now = LowRank(self.Vh.weight, self.U.weight * self.S.weight)
        return difference(now, LowRank(self.A0, self.B0))
