"""xKV: one A for a group of layers, from what they have in common."""

from collections.abc import Sequence
from typing import final

import torch
from torch import Tensor

from fedsvd.adapters.base import Initialiser, Site
from fedsvd.adapters.rows import with_zero_B
from fedsvd.adapters.triplets import leading
from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import LowRank

SOURCES = ("weights", "inputs", "gradients")


@final
class Xkv(Initialiser):
    """Layers of one kind in `blocks` adjacent blocks hold one A; B = 0 at first, one for each layer.

    Adapted from xKV (Chang et al., 2025, arXiv 2503.18893), which compresses key and value caches and
    trains nothing: caches (tokens, d) of a group are put side by side, and the r leading left
    singular vectors of that are the basis all its layers share. Here the matrices side by side are
    the transposed weights W_l^T (d_in, d_out), so A holds the r leading right singular vectors of
    [W_1; ...; W_G], one below the other. `source` "inputs": of the layers' inputs on public
    texts; "gradients": of their mean gradients. Groups of 4 as published. Each row of A has its
    largest entry positive.
    """

    one_A = True

    def __init__(self, blocks: int = 4, source: str = "weights") -> None:
        if not isinstance(blocks, int) or isinstance(blocks, bool) or blocks < 2:
            raise wrong("adapter.blocks", blocks, "a whole number of at least 2")
        if source not in SOURCES:
            raise one_of("adapter.source", source, SOURCES)
        self.group, self.source = blocks, source
        self.needs_inputs, self.needs_gradients = source == "inputs", source == "gradients"

    def common(self, sites: Sequence[Site]) -> Tensor:
        """Return the stack's right singular vectors as rows (d, d_in), float64, d at most d_in."""
        if self.source != "inputs":
            stack = [s.weight.double() if self.source == "weights" else s.gradient for s in sites]
            tall = torch.cat([t for t in stack if t is not None])
            return leading(tall, min(tall.shape))[2]
        # Every layer sees the same number of tokens: the stack's Gram matrix is the sum of theirs.
        moments = torch.stack([s.inputs.moment for s in sites if s.inputs is not None]).sum(0)
        return leading(moments, len(moments))[2]

    def factors(self, site: Site) -> LowRank:
        """Return the group's A, cut to the layer's rank, and B = 0."""
        A: Tensor = site.common[: site.rank]
        return with_zero_B(A, site)
