"""Gaussian noise from a stream of the run, or from the operating system."""

import math
import os

import numpy as np
import torch
from torch import Generator, Tensor


def gaussian(like: Tensor, std: float, generator: Generator | None) -> Tensor:
    """Return N(0, std^2) noise of the shape, dtype and device of `like`.

    `generator`, on that device, makes it repeatable. None takes the randomness from the operating
    system's generator (`os.urandom`), which nobody can repeat or predict. Either way the values are
    floating-point numbers: their finite set is not a true Gaussian, and attacks on the last bits of
    a release (Mironov, CCS 2012) are not prevented.
    """
    if generator is not None:
        noise = torch.empty_like(like, memory_format=torch.contiguous_format)
        return noise.normal_(0.0, std, generator=generator)
    values = torch.from_numpy(_normals(like.numel()) * std)
    return values.view(like.shape).to(like.device, like.dtype)


def uniforms(count: int, generator: Generator | None) -> Tensor:
    """Return float64 values uniform on [0, 1) from a CPU generator or, if None, from the system."""
    if generator is not None:
        return torch.rand(count, generator=generator, dtype=torch.float64)
    return torch.from_numpy(_bits(count) * 2.0**-53)


def _bits(count: int) -> np.ndarray:
    return np.frombuffer(os.urandom(8 * count), dtype=np.uint64) >> np.uint64(11)


def _normals(count: int) -> np.ndarray:
    """Return standard normals by the method of Box and Muller, two from two uniforms."""
    pairs = (count + 1) // 2
    radius = np.sqrt(-2 * np.log((_bits(pairs) + 1) * 2.0**-53))  # of (0, 1], so finite
    angle = 2 * math.pi * _bits(pairs) * 2.0**-53
    return np.concatenate([radius * np.cos(angle), radius * np.sin(angle)])[:count]
