"""Shrinkage of singular values at the noise level, by dual averaging; and how far they stand out.

Spectral dual averaging is a method of this project. The server keeps the raw sum R of released
moves and broadcasts U shrink(S) V^T of R. What a client sends is a move from what it was sent, so R
is never shrunk twice. `shrink` is the optimal shrinkage of singular values in white noise of known
level, for the Frobenius loss (Gavish and Donoho, IEEE Trans. Inf. Theory 2017, arXiv 1405.7511).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.strategies.base import NoiseView

RAW = "raw."  # in the state's memory: what a layer's R is in the place of the factor that trains

Turn = Callable[[Mapping[str, LowRank]], Mapping[str, LowRank]]


def check_strength(strength: float) -> float:
    """Return a strength in [0, 1]; InputError for another."""
    if not 0 <= strength <= 1:
        raise wrong("strategy.strength", strength, "in [0, 1]")
    return strength


@dataclass(frozen=True)
class Level:
    """The noise in a long by short matrix: its scale sqrt(v long), and beta = short / long.

    Singular values of noise alone end at the edge scale (1 + sqrt beta).
    """

    scale: float
    beta: float

    @property
    def edge(self) -> float:
        """The largest singular value of noise alone, for large matrices."""
        return self.scale * (1 + self.beta**0.5)


def level(total: tuple[float, float], pair: LowRank, trains: str) -> Level | None:
    """Return the noise of the factor that `trains`, where the product has `total`; None for none.

    `total` is the layer's of `NoiseView`: noise of rounds of B, and of A. In the trained factor it is
    white where the resting one has orthogonal rows (columns) of one length c, and is divided by c^2
    here; c^2 is their mean. Noise of the other side's rounds is in the product, too. Its energy
    v long counts with its own long side: where both sides trained this level is an approximation.
    """
    rests = pair.A if trains == "B" else pair.B
    length = float(rests.double().square().sum()) / pair.rank
    sizes = [(max(d, pair.rank), min(d, pair.rank)) for d in (len(pair.B), pair.A.shape[1])]
    v, energy = sum(total), sum(t * long for t, (long, _) in zip(total, sizes, strict=True))
    if not energy or not length:
        return None
    short = sum(t * s for t, (_, s) in zip(total, sizes, strict=True)) / v
    return Level((energy / length) ** 0.5, short / (energy / v))


def shrink(S: Tensor, noise: Level) -> Tensor:
    """Return the optimal singular values for observed ones S, in float64.

    With z = S / scale: scale sqrt((z^2 - beta - 1)^2 - 4 beta) / z above the edge z = 1 + sqrt beta,
    0 below it.
    """
    z, beta = S.double() / noise.scale, noise.beta
    inside = ((z.square() - beta - 1).square() - 4 * beta).clamp_min(0)
    return torch.where(z > 1 + beta**0.5, noise.scale * inside.sqrt() / z, 0.0)


def dual_average(
    state: AdapterState, mean: AdapterState, trained: str, noise: NoiseView, strength: float,
    trains: str, turn: Turn | None = None,
) -> AdapterState:  # fmt: skip
    """Return `mean` with every product shrunk from the raw sum, and the raw sum in its memory.

    `state` is what the round began with and `trained` the factor that moved in it: R grows by
    mean - state. `strength` 0 takes S as it is, 1 all of its shrinkage. `turn` gives R the factors in
    which the factor `trains` is next (fedsvd.lowrank), None keeps those of now. The singular values
    are those of the trained factor, where the noise is white.
    """
    factors, memory = {}, dict(mean.memory)
    raw, shrunk = {}, {}
    for layer, old in state.factors.items():
        new, name = mean.factors[layer], RAW + layer
        before = state.memory.get(name, factor(old, trained)).double()
        R = before + (factor(new, trained).double() - factor(old, trained).double())
        U, S, Vh = torch.linalg.svd(R, full_matrices=False)
        found = level(noise.total.get(layer, (0.0, 0.0)), new, trained)
        if found is not None:
            S = S + strength * (shrink(S, found) - S)
        pair = LowRank(new.A.double(), new.B.double())
        raw[layer], shrunk[layer] = put(pair, trained, R), put(pair, trained, (U * S) @ Vh)
    turned = raw if turn is None else turn(raw)
    for layer, pair in turned.items():
        found_now = shrunk[layer] if turn is None else written(shrunk[layer], pair, trains)
        old = state.factors[layer]
        factors[layer] = LowRank(found_now.A.to(old.A.dtype), found_now.B.to(old.B.dtype))
        memory[RAW + layer] = factor(pair, trains).to(old.A.dtype)
    return replace(mean, factors=factors, memory=memory)


def ratios(state: AdapterState, trains: str, noise: NoiseView) -> dict[str, list[float]]:
    """Return each layer's singular values of R, divided by the noise's edge, descending.

    A value below 1 cannot be told from noise by its size; its direction may still hold signal. Layers
    without noise are left out. `trains` is the factor that the state is written for.
    """
    found = {}
    for layer, pair in state.factors.items():
        here = level(noise.total.get(layer, (0.0, 0.0)), pair, trains)
        if here is not None:
            R = state.memory.get(RAW + layer, factor(pair, trains))
            found[layer] = (torch.linalg.svdvals(R.double()) / here.edge).tolist()
    return found


def floor(state: AdapterState, trains: str, noise: NoiseView) -> float | None:
    """Return the smallest singular value of noise alone over its edge, the least of the layers.

    It is (1 - sqrt beta) / (1 + sqrt beta) for large matrices; None where no layer has noise.
    """
    found = [
        (1 - here.beta**0.5) / (1 + here.beta**0.5)
        for layer, pair in state.factors.items()
        if (here := level(noise.total.get(layer, (0.0, 0.0)), pair, trains)) is not None
    ]
    return min(found, default=None)


def factor(pair: LowRank, kind: str) -> Tensor:
    """Return A or B of a pair."""
    return pair.A if kind == "A" else pair.B


def put(pair: LowRank, kind: str, value: Tensor) -> LowRank:
    """Return the pair with A or B replaced."""
    return LowRank(value, pair.B) if kind == "A" else LowRank(pair.A, value)


def written(pair: LowRank, like: LowRank, trains: str) -> LowRank:
    """Return the product of `pair` on the resting factor of `like`, orthonormal and spanning it."""
    if trains == "B":
        return LowRank(like.A, pair.B @ (pair.A @ like.A.mT))
    return LowRank((like.B.mT @ pair.B) @ pair.A, like.B)
