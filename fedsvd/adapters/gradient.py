"""Gradient start: A spans what public texts would change of the layer's weight first."""

from typing import final

from torch import Tensor

from fedsvd.adapters.base import Initialiser, Site
from fedsvd.adapters.rows import with_zero_B
from fedsvd.adapters.triplets import leading
from fedsvd.errors import InputError
from fedsvd.lowrank import LowRank

# Singular values below this share of the largest are rounding: gradients are computed in float32.
ROUNDING = 1e-5


@final
class Gradient(Initialiser):
    """A = the r leading right singular vectors of the mean gradient dL/dW, B = 0.

    The idea of LoRA-GA (Wang et al., NeurIPS 2024, arXiv 2407.05000) and LoRA-SB (Ponkshe et al.,
    2024, arXiv 2411.19557), with the gradient of public texts with labels in place of training data.
    As B = 0 nothing moves at the start. Rows of A are orthonormal, each with its largest entry
    positive. With A fixed and one step of SGD on B, W moves by the gradient's best approximation of
    rank r, on these texts.
    """

    needs_gradients = True

    def factors(self, site: Site) -> LowRank:
        """Return the right singular vectors as rows, and B = 0."""
        return with_zero_B(gradient_triplets(site, site.rank)[2], site)


def gradient_triplets(site: Site, count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (d_out, k), S (k,), Vh (k, d_in), float64, of the layer's mean gradient.

    Raises InputError if the gradient is not finite or has fewer singular values beyond rounding.
    """
    gradient = site.gradient
    assert gradient is not None
    if not bool(gradient.isfinite().all()):
        raise InputError(f"adapter: the gradient of {site.name} on public texts is not finite")
    if count > min(gradient.shape):
        raise InputError(
            f"adapter.rank: {site.name} needs {count} singular vectors and is "
            f"{gradient.shape[0]} x {gradient.shape[1]}; take a smaller rank"
        )
    U, S, Vh = leading(gradient, count)
    held = int((ROUNDING * S[0] < S).sum())
    if not held:
        raise InputError(
            f"adapter: the gradient of {site.name} on public texts is zero; a head that starts at "
            "zeros lets none through: choose model.head_init=texts or random"
        )
    if held < count:
        raise InputError(
            f"adapter: the gradient of {site.name} on public texts has rank {held}, and {count} "
            "directions are asked for; take a smaller adapter.rank or more texts (data.public, "
            "adapter.calibration)"
        )
    return U, S, Vh
