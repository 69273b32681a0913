"""How one example's gradient is bounded: factors from norms, and their sensitivity.

For each kind, one example contributes sum_t w_t g_t over the trained tensors t, with factors w_t that
depend on that example alone. The norm of the contribution over all tensors together is at most C =
`clip_norm`, so adding or removing an example moves the sum by at most C, however it is batched.
"""

from collections.abc import Callable

import torch
from torch import Tensor

STABILITY = 0.01  # gamma of automatic clipping, as in its paper's experiments


def flat(norms: Tensor, clip_norm: float) -> Tensor:
    """w = min(1, C / ||g||), the norm over all tensors together (Abadi et al., CCS 2016)."""
    return (clip_norm / norms.norm(dim=0)).clamp(max=1.0).expand_as(norms)


def per_layer(norms: Tensor, clip_norm: float) -> Tensor:
    """w_t = min(1, C_t / ||g_t||) with C_t = C / sqrt(T) for T tensors (McMahan et al., 2018).

    Each contribution is at most C_t, so all together at most sqrt(sum C_t^2) = C.
    """
    return (clip_norm / len(norms) ** 0.5 / norms).clamp(max=1.0)


def automatic(norms: Tensor, clip_norm: float) -> Tensor:
    """w = C / (||g|| + 0.01): every gradient is scaled to a norm just below C.

    Automatic clipping (AUTO-S; Bu et al., NeurIPS 2023, arXiv 2206.07136), equation 4.1.
    """
    return (clip_norm / (norms.norm(dim=0) + STABILITY)).expand_as(norms)


CLIPPING: dict[str, Callable[[Tensor, float], Tensor]] = {
    "flat": flat,
    "per_layer": per_layer,
    "automatic": automatic,
}


def clipped_sums(
    grads: list[Tensor], clip_norm: float, kind: str = "flat"
) -> tuple[list[Tensor], Tensor]:
    """Return the sum over examples of clipped gradients, a tensor each, and the norms (n,) before.

    `grads` are per-example gradients (n, *shape) of every tensor that trains. An example whose
    gradient (or its norm) is not finite contributes nothing: whatever an example is, it moves the
    sums by at most `clip_norm`.
    """
    if not len(grads[0]):
        return [g.new_zeros(g.shape[1:]) for g in grads], grads[0].new_zeros(0)
    # Norms over every axis but the first, read in whatever layout the gradients have.
    norms = torch.stack([torch.linalg.vector_norm(g, dim=tuple(range(1, g.ndim))) for g in grads])
    total = norms.norm(dim=0)
    factors = CLIPPING[kind](norms, clip_norm).nan_to_num(nan=1.0, posinf=1.0)
    finite = total.isfinite()
    if not finite.all():
        factors = factors * finite
        grads = [torch.where(_rows(finite, g), g, 0) for g in grads]
    return [_weighted_sum(w, g) for w, g in zip(factors, grads, strict=True)], total


def _rows(mask: Tensor, like: Tensor) -> Tensor:
    return mask.view(-1, *(1,) * (like.ndim - 1))


def _weighted_sum(weights: Tensor, grads: Tensor) -> Tensor:
    """Return sum_i w_i g_i as one matrix-vector product, without copying transposed matrices."""
    if grads.ndim == 3 and grads.mT.is_contiguous() and not grads.is_contiguous():
        return _weighted_sum(weights, grads.mT).mT
    return (weights.to(grads.dtype) @ grads.flatten(start_dim=1)).view(grads.shape[1:])
