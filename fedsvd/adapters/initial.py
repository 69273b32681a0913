"""Initial factors of one frozen layer, by name.

Every initialiser is a function (weight, rank, scale, generator) -> LowRank, where `weight` is the
frozen (d_out, d_in) matrix, `scale` = alpha / rank, and `generator` a CPU generator of its own.
One in `ABSORBED` gives factors with B A != 0; the caller then subtracts scale * B A from the weight,
so that the layer computes what it did.
"""

import math
from collections.abc import Callable

import torch
from torch import Generator, Tensor

from fedsvd.lowrank import LowRank

Initialiser = Callable[[Tensor, int, float, Generator], LowRank]


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


def pissa(weight: Tensor, rank: int, scale: float, generator: Generator) -> LowRank:
    """Principal singular triplets: B = U_r (S_r / s)^1/2, A = (S_r / s)^1/2 V_r^T.

    PiSSA (Meng et al., NeurIPS 2024, arXiv 2404.02948), equations 2 to 4, with s = alpha / r.
    """
    U, S, Vh = torch.linalg.svd(weight.double().cpu(), full_matrices=False)
    root = (S[:rank] / scale).sqrt()
    A, B = root[:, None] * Vh[:rank], U[:, :rank] * root
    return LowRank(A.to(torch.float32).contiguous(), B.to(torch.float32).contiguous())


INITIALISERS: dict[str, Initialiser] = {
    "kaiming": kaiming,
    "gaussian": gaussian,
    "orthonormal": orthonormal,
    "pissa": pissa,
}
ABSORBED = frozenset({"pissa"})
