"""Random starts of a layer's factors, by name: A random, B = 0.

Each is a function (weight, rank, scale, generator) -> LowRank, where `weight` is the frozen
(d_out, d_in) matrix, `scale` = alpha / rank, and `generator` a CPU generator of its own.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from fedsvd.lowrank import LowRank

Start = Callable[[Tensor, int, float, Generator], LowRank]


def kaiming(weight: Tensor, rank: int, scale: float, generator: Generator) -> LowRank:
    """A Kaiming-uniform with a = sqrt 5, that is U(-1/sqrt d_in, 1/sqrt d_in); B = 0 (LoRA)."""
    A = torch.empty(rank, weight.shape[1])
    A.uniform_(-1, 1, generator=generator).div_(math.sqrt(weight.shape[1]))
    return LowRank(A, torch.zeros(weight.shape[0], rank))


def gaussian(weight: Tensor, rank: int, scale: float, generator: Generator) -> LowRank:
    """A ~ N(0, 1/r^2) in every entry, B = 0 (LoRA as first published)."""
    A = torch.randn(rank, weight.shape[1], generator=generator) / rank
    return LowRank(A, torch.zeros(weight.shape[0], rank))


def orthonormal(weight: Tensor, rank: int, scale: float, generator: Generator) -> LowRank:
    """A with orthonormal rows spanning what `kaiming` spans for the same generator; B = 0.

    Spanning the same rows makes it the control for FedSVD started from Kaiming A.
    """
    Q, _ = torch.linalg.qr(kaiming(weight, rank, scale, generator).A.double().mT)
    return LowRank(Q.mT.to(torch.float32).contiguous(), torch.zeros(weight.shape[0], rank))


INITIALISERS: dict[str, Start] = {
    "kaiming": kaiming,
    "gaussian": gaussian,
    "orthonormal": orthonormal,
}
