"""The same product with whichever factor rests orthonormal, also where the product lacks rank."""

from collections.abc import Callable, Mapping

import torch
from torch import Generator, Tensor

from fedsvd.lowrank.pair import LowRank
from fedsvd.lowrank.refactor import refactorise_pairs
from fedsvd.lowrank.subspace import rows_from


def turn(
    factors: Mapping[str, LowRank], trains: str, generator: Callable[[str], Generator]
) -> dict[str, LowRank]:
    """Return the same products B A = U S V^T with the factor that is not `trains` orthonormal.

    `trains` "B": A = V^T, B = U S. `trains` "A": B = U, A = S V^T. The work is done in float64 and
    comes back in the factors' dtype. See `refactorise_pairs`, also for signs and errors.

    A singular value of at most 4 eps of the largest, eps of the factors' dtype, counts as 0: the
    product does not say which direction belongs to it. So its row of V^T (or column of U) is the next
    of the resting factor's own directions that is not taken, and where those do not suffice, as when
    B = 0, a random one from `generator(layer)`. The factor that trains is 0 there. What trains can
    therefore always reach rank r.
    """
    given = {n: flipped(p) for n, p in factors.items()} if trains == "A" else dict(factors)
    done = refactorise_pairs(given, dtype=torch.float64)
    for layer, pair in done.items():
        S = pair.B.norm(dim=0)
        tiny = 4 * torch.finfo(factors[layer].A.dtype).eps * S.max()
        if bool((tiny >= S).any()):
            done[layer] = _completed(pair, given[layer].A, tiny, generator(layer))
    if trains == "A":
        done = {n: flipped(p) for n, p in done.items()}
    return {
        n: LowRank(p.A.to(factors[n].A.dtype), p.B.to(factors[n].B.dtype)) for n, p in done.items()
    }


def flipped(pair: LowRank) -> LowRank:
    """Return the pair of the transposed product: A^T in the place of B, B^T in that of A."""
    return LowRank(pair.B.mT.contiguous(), pair.A.mT.contiguous())


def _completed(pair: LowRank, before: Tensor, tiny: Tensor, generator: Generator) -> LowRank:
    """Return `pair` (orthonormal rows, scaled columns) with other rows where the scale is 0.

    `before` (r, d) is the resting factor as it was.
    """
    kept = int((pair.B.norm(dim=0) > tiny).sum())  # they come first: S descends
    _, S, Vh = torch.linalg.svd(before.double(), full_matrices=False)
    own = Vh[4 * torch.finfo(before.dtype).eps * S[:1] < S]
    rows = rows_from(own, pair.A[:kept], pair.rank - kept, generator)
    B = pair.B.clone()
    B[:, kept:] = 0
    return LowRank(torch.cat([pair.A[:kept], rows]), B)
