"""New rows for A: random orthonormal ones, and rows of the discrete cosine transform."""

import math

import torch
from torch import Generator, Tensor


def fresh_rows(kept: Tensor, count: int, generator: Generator) -> Tensor:
    """Return `count` orthonormal rows, orthogonal to the orthonormal rows `kept` (k, d), float64.

    They are uniform on what `kept` leaves. `generator` is on the CPU, the result where `kept` is.
    Raises ValueError if k + count exceeds d.
    """
    k, d = kept.shape
    if k + count > d:
        raise ValueError(f"{k} + {count} orthonormal rows do not exist in {d} dimensions")
    G = torch.randn(count, d, generator=generator, dtype=torch.float64).to(kept.device)
    base = kept.double()
    for _ in range(2):  # the second pass removes what rounding left of the first
        G = torch.linalg.qr((G - (G @ base.mT) @ base).mT)[0].mT
    return G


def orthonormal_columns(size: int, count: int, generator: Generator) -> Tensor:
    """Return (size, count) orthonormal columns, uniformly distributed, float64."""
    Q, R = torch.linalg.qr(torch.randn(size, count, generator=generator, dtype=torch.float64))
    return Q * R.diagonal().sign()


def rows_from(listed: Tensor, kept: Tensor, count: int, generator: Generator) -> Tensor:
    """Return `count` orthonormal rows, orthogonal to the orthonormal rows `kept` (k, d), float64.

    They are the first of the rows `listed` (n, d), orthonormal too, that are not nearly spanned by
    those kept (at least 0.01 of a unit vector is left); where too few are, random rows follow.
    """
    rows = kept.double()
    for candidate in listed.double():
        if len(rows) == len(kept) + count:
            break
        rest = candidate
        for _ in range(2):  # the second pass removes what rounding left of the first
            rest = rest - rows.mT @ (rows @ rest)
        if rest.norm() >= 0.01:
            rows = torch.cat([rows, (rest / rest.norm())[None]])
    found = rows[len(kept) :]
    missing = count - len(found)
    return torch.cat([found, fresh_rows(rows, missing, generator)]) if missing else found


def leading(S: Tensor, energy: float) -> int:
    """Return the smallest k with sum of the k largest S^2 >= energy * sum of all, at least 1.

    S (r,) holds singular values in descending order; of zeros, k is 1.
    """
    share = S.double().square().cumsum(0)
    # Rounding may leave the last partial sum a digit below the total that it is compared with.
    return min(int((share < energy * share[-1] * (1 - 1e-12)).sum()) + 1, len(S))


def dct(x: Tensor) -> Tensor:
    """Return x Q for (..., d) rows and the orthogonal DCT-II matrix Q (d, d), in float64.

    Q_nj = c_j cos(pi (2n + 1) j / 2d), c_0 = sqrt(1/d), c_j = sqrt(2/d). By a fast Fourier transform
    of the rows' even, then reversed odd entries (Makhoul, IEEE TASSP 1980), in O(d log d) a row.
    """
    d = x.shape[-1]
    x = x.double()
    v = torch.cat([x[..., ::2], x[..., 1::2].flip(-1)], dim=-1)
    j = torch.arange(d, dtype=torch.float64, device=x.device)
    turned = torch.fft.fft(v) * torch.exp(-0.5j * math.pi * j / d)
    scale = torch.full((d,), math.sqrt(2 / d), dtype=torch.float64, device=x.device)
    scale[0] = math.sqrt(1 / d)
    return turned.real * scale


def dct_rows(index: Tensor, d: int) -> Tensor:
    """Return columns `index` (r,) of the orthogonal DCT-II matrix as rows (r, d), in float64."""
    n = torch.arange(d, dtype=torch.float64, device=index.device)
    j = index.double().unsqueeze(1)
    rows = math.sqrt(2 / d) * torch.cos(math.pi / (2 * d) * (2 * n + 1) * j)
    return torch.where(j == 0, rows / math.sqrt(2), rows)


def moved(old: Tensor, new: Tensor) -> tuple[float, float]:
    """Return how far rows (r, d) moved as a space, and each by itself; both in [0, 1].

    The first is the chordal distance of the row spaces over its largest value,
    sqrt(1 - mean cos^2) over their principal angles. The second is sqrt(1 - mean cos^2) over the
    angles between a row and the same row before; it also sees a turn within the space. The spaces
    are those of full rank: where rows are dependent, a basis is completed as QR does it.
    """
    if torch.equal(old, new):
        return 0.0, 0.0
    before, after = (torch.linalg.qr(x.double().mT).Q for x in (old, new))
    # The part of a basis outside of the other one: 1 - cos^2 would lose half of the digits.
    rest = after - before @ (before.mT @ after)
    space = (rest.square().sum() / rest.shape[1]).clamp(0, 1)
    cos = torch.nn.functional.cosine_similarity(old.double(), new.double(), dim=1, eps=1e-300)
    return float(space.sqrt()), float((1 - cos.square().mean()).clamp(0, 1).sqrt())
