"""Gradient start: A spans what public texts would change of the layer's weight first."""

from typing import final

import torch
from torch import Tensor

from fedsvd.adapters.base import Initialiser, Site
from fedsvd.adapters.rows import with_zero_B
from fedsvd.adapters.triplets import leading
from fedsvd.errors import InputError, wrong
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

    With `whiten` = lambda (this project's) rows are chosen and whitened together. Let M be that
    gradient and K = E[x x^T] + lambda t I. x are the layer's inputs on the same number of public
    texts, and t is the mean eigenvalue of E[x x^T]. Then A = c V_r^T K^-1/2, where V_r holds the
    leading right singular vectors of M K^-1/2. So A K A^T = c^2 I: what enters B has one size in
    all directions. c makes ||A||_F^2 = r, as of orthonormal rows. A strategy that gives A new
    orthonormal rows keeps its row space alone; `ffa` keeps A.
    """

    needs_gradients = True

    def __init__(self, whiten: float | None = None) -> None:
        if whiten is not None and not 0 < whiten < float("inf"):
            raise wrong("adapter.whiten", whiten, "a number above 0, or null (not whitened)")
        self.whiten, self.needs_inputs = whiten, whiten is not None

    def factors(self, site: Site) -> LowRank:
        """Return the right singular vectors, as they are or whitened, as rows, and B = 0."""
        if self.whiten is None:
            return with_zero_B(gradient_triplets(site, site.rank)[2], site)
        assert site.inputs is not None
        values, vectors = torch.linalg.eigh(site.inputs.moment)
        values = values.clamp_min(0)
        root = (vectors * (values + self.whiten * values.mean()).rsqrt()) @ vectors.mT
        A = gradient_triplets(site, site.rank, root)[2] @ root
        return with_zero_B(A * (site.rank**0.5 / torch.linalg.matrix_norm(A)), site)


def gradient_triplets(
    site: Site, count: int, right: Tensor | None = None
) -> tuple[Tensor, Tensor, Tensor]:
    """Return U (d_out, k), S (k,), Vh (k, d_in), float64, of the layer's mean gradient.

    With `right` (d_in, d_in) they are those of the gradient times it. Raises InputError if the
    gradient is not finite or has fewer singular values beyond rounding.
    """
    assert site.gradient is not None
    gradient = site.gradient if right is None else site.gradient @ right
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
