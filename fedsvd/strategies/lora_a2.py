"""LoRA-A2: rounds of B alternate with rounds of A, and clients move their few best components."""

from collections.abc import Sequence
from typing import ClassVar, final

from fedsvd.client.rule import LocalRule
from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState
from fedsvd.strategies.base import Strategy, Update, weighted_mean


@final
class LoraA2(Strategy):
    """Average B in odd rounds, A in even ones; a client moves the r_k N components that matter most.

    LoRA-A2 (Koo, Jang, Ok, ACL 2025, arXiv 2410.22815, equations 3 to 6, algorithms 1 and 2). In
    every round a client trains for a while, scores each component i of each of the N layers by
    ||dB[:, i] A[i]||_F (by ||B[:, i] dA[i]||_F in a round of A), goes back to where it began, and
    trains again with everything but the r_k N components of the highest scores, of all layers
    together, held still. `rank` is r_k, or `clients.ranks` gives every client its own. Exact, as one
    factor is equal everywhere; a component that a client left alone counts as a move of 0.

    The paper scores by one epoch beside the five of training; here the first `probe` of the local
    steps do, so that no further step is taken (under privacy: spent). The paper has a learning rate
    for A and another for B; here both have one.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    averages: ClassVar[bool] = True
    mean_only: ClassVar[bool] = True
    selects: ClassVar[bool] = True
    exact = True

    def __init__(self, rank: int = 2, probe: float = 1 / 6) -> None:
        if isinstance(rank, bool) or not isinstance(rank, int) or rank < 1:
            raise wrong("strategy.rank", rank, "a whole number of at least 1")
        if not 0 < probe < 1:
            raise wrong("strategy.probe", probe, "in (0, 1)")
        self.local = LocalRule(budget=rank, probe=probe)

    def trains_in(self, round: int) -> tuple[str, ...]:
        """Return ("B",) for odd rounds, ("A",) for even ones."""
        return ("B",) if round % 2 else ("A",)

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted mean of what trained."""
        return weighted_mean(state, updates)
