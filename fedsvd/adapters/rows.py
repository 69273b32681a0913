"""Rows of A from fixed orthogonal transforms: no draw but which ones."""

import torch
from torch import Generator, Tensor

from fedsvd.adapters.base import Site
from fedsvd.lowrank import LowRank


def chosen(size: int, count: int, generator: Generator) -> Tensor:
    """Return `count` of 0..size-1, drawn without repetition, ascending."""
    return torch.randperm(size, generator=generator)[:count].sort().values


def with_zero_B(A: Tensor, site: Site) -> LowRank:
    """Return A with B = 0."""
    return LowRank(A, A.new_zeros(site.weight.shape[0], site.rank))
