"""Gaussian noise on a sum, from a stream of the run or from the operating system.

**Draws.** Box and Muller's method in float64 on 64-bit words: two normals from two words, without
rejections, so that its time tells nothing. One word gives u = (k + 1/2) 2^-63, k uniform on 63 bits,
and r = sqrt(-2 log u); the other an angle in [-pi, pi]. |z| reaches sqrt(128 log 2) = 9.419, beyond
which a normal lies with probability 4.6e-21.

**Release.** The sum and its noise are added and rounded once, to a grid: multiples of a power of two
between 1/2048 and 1/1024 of the noise's standard deviation, chosen by that alone. A cell of the grid
holds some 2^40 of the values that a draw can have, so the last bits of a release, which would tell
what was added to what (Mironov, CCS 2012), are gone. The grid adds 8e-8 of the noise's variance.
Values below 2^24 cells, 8192 standard deviations, are exact in float32.

**Distance from a true Gaussian.** Rounded to the same grid, it is private exactly as the Gaussian
mechanism. n draws here differ from it by at most n 2^-50 + sqrt(n) 2^-36 in total variation, which
is 5e-7 for n = 2.7e8; (1 + e^epsilon) times that is to be added to delta. docs/randomness.md derives
it and says what is not covered.
"""

import math
from collections.abc import Sequence

import numpy as np
import torch
from torch import Tensor

from fedsvd.randomness import words

GRID = 10  # a cell is at most 2^-GRID standard deviations
LARGEST = math.sqrt(128 * math.log(2))  # of |z|


def normals(
    count: int, generator: np.random.Generator | None, device: torch.device | str = "cpu"
) -> Tensor:
    """Return standard normals (count,), float64, on `device`.

    The words are drawn on the CPU, from `generator` or, if None, from the operating system, and
    turned into normals on the device.
    """
    pairs = (count + 1) // 2
    drawn = words(2 * pairs, generator)
    drawn[:pairs] >>= np.uint64(1)
    k, turn = torch.from_numpy(drawn.view(np.int64)).to(device).double().split(pairs)
    radius = k.add_(0.5).mul_(2.0**-63).log_().mul_(-2).sqrt_()
    angle = turn.mul_(math.pi * 2.0**-63)
    return torch.cat([angle.cos().mul_(radius), angle.sin_().mul_(radius)])[:count]


def noised(
    totals: Sequence[Tensor], std: float, generator: np.random.Generator | None
) -> list[Tensor]:
    """Return every tensor of `totals` + N(0, std^2), rounded once, in its shape and dtype.

    All are on one device. A `generator` makes the noise repeatable by whoever knows its stream. None
    takes it from the operating system: nobody can repeat it, and to predict it is to break AES-256 or
    that generator (`fedsvd.randomness.words`). With std = 0 they are `totals` themselves.
    """
    if std == 0 or not totals:
        return list(totals)
    cell = 2.0 ** (math.frexp(std)[1] - 1 - GRID)
    units = torch.cat([t.flatten() for t in totals]).double().div_(cell)
    noise = normals(units.numel(), generator, units.device).mul_(std / cell)
    # Exact until the noise is added to what is at most half a cell: a large sum would take the last
    # bits of the noise away.
    whole = units.round()
    noise += units.sub_(whole)
    # The last addition takes -0.0, which is half a cell, to 0.0.
    flat = noise.round_().add_(whole).mul_(cell).add_(0.0)
    parts = flat.split([t.numel() for t in totals])
    return [p.to(t.dtype).view(t.shape) for p, t in zip(parts, totals, strict=True)]
