"""FedSVD whose orthonormal side takes turns, so that the row space of A moves."""

from collections.abc import Mapping, Sequence
from dataclasses import replace
from functools import partial
from typing import ClassVar, final

from torch import Generator

from fedsvd.errors import one_of, wrong
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.lowrank.turns import turn
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.strategies.base import Strategy, Update, weighted_mean
from fedsvd.strategies.spectral import check_strength, dual_average

SIDES = ("A", "B")


@final
class FedSvdAlternate(Strategy):
    """Train B between rounds of A = V^T, then A between rounds of B = U, and so on.

    A method of this project. Every round ends with B A = U S V^T of the mean, which is exact, as one
    factor is equal everywhere. If B trains next, clients get A = V^T, B = U S; if A does, B = U,
    A = S V^T. Each side has `hold` rounds in a row, `first` the first ones. The first round, too,
    begins with its resting factor orthonormal. One side is noised at a time, and what trains always
    has the scale S and an orthonormal partner; RoLoRA trains A against a B of any size, which is
    small early on. Directions that the product does not have yet (all, while B = 0) are those of the
    resting factor, or random from the stream (seed, "subspace", round, layer): `lowrank.turns.turn`.
    `strength` above 0 shrinks the singular values at the noise level (`fedsvd.strategies.spectral`);
    under privacy the step is then not exact.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    mean_only: ClassVar[bool] = True
    adds_moves = True

    def __init__(
        self, hold: int = 1, first: str = "B", seed: int = 0, strength: float = 0.0
    ) -> None:
        if hold < 1:
            raise wrong("strategy.hold", hold, "a whole number of at least 1")
        if first not in SIDES:
            raise one_of("strategy.first", first, SIDES)
        self.hold, self.first, self.seed = hold, first, seed
        self.strength = check_strength(strength)
        self.needs_noise = strength > 0
        self.exact = self.idempotent = self.fixed_point = strength == 0

    def side(self, round: int) -> str:
        """Return which of "A", "B" trains in a round (from 1)."""
        other = "A" if self.first == "B" else "B"
        return other if (round - 1) // self.hold % 2 else self.first

    def trains_in(self, round: int) -> tuple[str, ...]:
        """Return the one factor that trains in a round."""
        return (self.side(round),)

    def begin(self, state: AdapterState) -> AdapterState:
        """Return the first state with the factor that rests in round 1 orthonormal."""
        return replace(state, factors=self._turned(1, state.factors))

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the mean of what trained, shrunk if so set, written for the side that is next."""
        mean, trained = weighted_mean(state, updates), self.side(state.round)
        later = state.round + 1
        write = partial(self._turned, later)
        if self.strength and self.noise is not None:
            side = self.side(later)
            return dual_average(state, mean, trained, self.noise, self.strength, side, write)
        return replace(mean, factors=write(mean.factors))

    def _turned(self, round: int, factors: Mapping[str, LowRank]) -> dict[str, LowRank]:
        """Return the same products as a round begins with them."""
        return turn(factors, self.side(round), partial(self._generator, round))

    def _generator(self, round: int, layer: str) -> Generator:
        return torch_stream(self.seed, Purpose.SUBSPACE, round, layer)
