"""Effort: the last singular triplet trains, held apart from the frozen leading subspace."""

from collections.abc import Sequence
from typing import ClassVar, final

import torch
from torch import Tensor, nn

from fedsvd.adapters.adapted import Adapted, weight_of
from fedsvd.adapters.base import Parametrisation, Site, Spectrum
from fedsvd.adapters.sorsa import Triplets, gram_error
from fedsvd.adapters.triplets import last
from fedsvd.errors import wrong

ROUNDING = 32  # a norm below this many units of the last place of 1 counts as 0


@final
class Effort(Parametrisation):
    """The leading n - r singular triplets are frozen; the last r train, as ".U", ".S", ".Vh".

    Effort (Yan et al., ICML 2025, arXiv 2411.15633) trains one of n = min(d_out, d_in), so
    `adapter.rank` is 1 in its configuration. Its two losses, means over layers, with U* = [U_lead, U]
    and V* = [V_lead, V]: `orthogonality` (1) times (||U*^T U* - I||_F + ||V*^T V* - I||_F) / 2, the
    norms unsquared, and `energy` (1) times | ||W||_F^2 - ||W_0||_F^2 |. Weights and halves are the
    released code's, where both losses are commented out and the cross-entropy alone is left: here
    that is `orthogonality` = `energy` = 0. That code forms U* U*^T, which is I for the square weights
    that it adapts; U*^T U* says the same for any shape. As parts of the loss they are multiplied by
    the learning rate; they look at no data and are added after clipping and noise. alpha is not used.

    The slope of an unsquared norm is 1 however near to 0 it is, so with plain SGD the triplet hops
    about by up to the rate over the number of layers. Below rounding the slope counts as 0.

    The frozen weight is W_lead, so [U_lead, U] is orthonormal iff U is and U_lead^T U = 0; U_lead
    itself is kept only on a side whose full space it is not the complement in.
    """

    tensors: ClassVar[tuple[str, ...]] = ("U", "S", "Vh")
    spectrum = Spectrum("last", "triplets")

    def __init__(self, orthogonality: float = 1.0, energy: float = 1.0) -> None:
        for key, value in (("orthogonality", orthogonality), ("energy", energy)):
            if value < 0:
                raise wrong(f"adapter.{key}", value, "at least 0")
        self.orthogonality, self.energy = orthogonality, energy

    def adapt(self, base: nn.Module, site: Site) -> Triplets:
        """Return the layer with its r last triplets apart."""
        # Before the layer is made, which takes the last triplets out of this very memory.
        basis = _long_side(site.weight) if self.orthogonality else None
        U, S, Vh = last(site.weight, site.rank)
        layer = Triplets(base, site, U, S, Vh)
        if basis is not None:
            layer.register_buffer("start_U", U.to(layer.B0).contiguous(), persistent=False)
            layer.register_buffer("basis", basis.to(site.weight).contiguous(), persistent=False)
        return layer

    def penalty(self, layers: Sequence[Adapted]) -> Tensor | None:
        """Return the weighted sum of both losses, each a mean over layers."""
        if not self.orthogonality and not self.energy:
            return None
        total = []
        for layer in layers:
            assert isinstance(layer, Triplets)
            U, S, Vh = layer.U.weight, layer.S.weight, layer.Vh.weight
            value = U.new_zeros(())
            if self.orthogonality:
                start_U = dict(layer.named_buffers())["start_U"]
                apart = _apart(U.mT, start_U.mT, _basis(layer, len(U)))
                apart = apart + _apart(Vh, layer.A0, _basis(layer, Vh.shape[1]))
                value = value + self.orthogonality * apart / 2
            if self.energy:
                value = value + self.energy * (_energy(layer, U, S, Vh) - self._start(layer)).abs()
            total.append(value)
        return torch.stack(total).mean()

    @staticmethod
    def _start(layer: Triplets) -> Tensor:
        A0 = layer.A0
        return _energy(layer, layer.B0, A0.new_ones(len(A0)), A0)


def _long_side(weight: Tensor) -> Tensor:
    """Return the singular vectors (n, max(d_out, d_in)) that do not fill their space, or nothing."""
    d_out, d_in = weight.shape
    if d_out == d_in:
        return torch.empty(0)
    U, _, Vh = torch.linalg.svd(weight.double(), full_matrices=False)
    return U.mT if d_out > d_in else Vh


def _basis(layer: Triplets, size: int) -> Tensor | None:
    """Return rows that span all singular vectors of length `size`, or None if they fill the space."""
    basis = dict(layer.named_buffers())["basis"]
    d_out, d_in = len(layer.B0), layer.A0.shape[1]
    return basis if d_out != d_in and size == max(d_out, d_in) else None


def _apart(rows: Tensor, start: Tensor, basis: Tensor | None) -> Tensor:
    """Return ||X X^T - I||_F of X = [lead; rows]: the rows' own part, and twice lead rows^T.

    The leading vectors are what is orthogonal to `start` among the basis: what a row has on them is
    what it has on the basis without what it has on `start`.
    """
    if basis is not None:
        rows_on, start_on = rows @ basis.mT, start @ basis.mT
    else:
        rows_on, start_on = rows, start
    cross = rows_on - (rows_on @ start_on.mT) @ start_on
    square = gram_error(rows).square().sum() + 2 * cross.square().sum()
    least = (ROUNDING * torch.finfo(square.dtype).eps) ** 2
    return torch.where(square > least, square, square.new_ones(())).sqrt() * (square > least)


def _energy(layer: Triplets, U: Tensor, S: Tensor, Vh: Tensor) -> Tensor:
    """Return ||W_lead + U diag(S) Vh||_F^2 - ||W_lead||_F^2, without forming the product."""
    lead = weight_of(layer.get_base_layer()).to(U)
    cross = (U * (lead @ Vh.mT)).sum(0) @ S
    gram = (U.mT @ U) * (Vh @ Vh.mT)
    return 2 * cross + S @ gram @ S
