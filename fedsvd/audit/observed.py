"""What the auditor has seen of a run, as data that the checks judge."""

import math
from dataclasses import dataclass, field

import numpy as np

from fedsvd.privacy.ledger import Spent
from fedsvd.privacy.plan import PrivacyPlan

MOST_PAIRED = 16384  # entries of a release that are kept to be compared with other releases


@dataclass(frozen=True)
class Release:
    """One noised release, in clips.

    energy: the sum of squares of what is left when the canaries that were in are taken away, over
    `entries`; variance: what the noise of an entry should have; kept: some of its entries.
    """

    client: int  # -1: the server's
    round: int
    entries: int
    energy: float
    variance: float
    kept: np.ndarray


@dataclass(frozen=True)
class Batches:
    """How many of `units` were drawn in each step, at the planned rate; and who.

    Of examples a client, or of clients at the server. `drawn` are arrays of the units' ids.
    """

    who: str
    units: int
    rate: float
    drawn: list[np.ndarray]


@dataclass
class Shift:
    """How far a drawn canary moved a release along its direction, by weighted least squares.

    Where n copies of canaries with contribution c were drawn, the score is n c + noise; the factor
    on c is `value`, 1 if clipping is what was planned.
    """

    top: float = 0.0
    bottom: float = 0.0

    def add(self, scores: np.ndarray, expected: np.ndarray, variance: float) -> None:
        """Take in scores with the values that they should have, and their variance."""
        if variance > 0:
            self.top += float((scores * expected).sum()) / variance
            self.bottom += float((expected**2).sum()) / variance

    @property
    def value(self) -> float:
        """The factor; nan before any canary was drawn."""
        return self.top / self.bottom if self.bottom else math.nan

    @property
    def se(self) -> float:
        """Its standard error where the noise is as planned."""
        return 1 / math.sqrt(self.bottom) if self.bottom else math.inf


@dataclass
class Observed:
    """A run as the auditor has seen it.

    inside, outside: a score of each canary, in planned deviations of its noise; theory: the mean of
    `inside` that the plan implies. steps: those that a client took in a round, as they were counted
    here; ledger: what was charged. alone: whether releases hold canaries and noise, and nothing else.
    """

    plan: PrivacyPlan
    alone: bool
    rounds: int = 0
    releases: list[Release] = field(default_factory=list)
    batches: list[Batches] = field(default_factory=list)
    shift: Shift = field(default_factory=Shift)
    inside: np.ndarray = field(default_factory=lambda: np.zeros(0))
    outside: np.ndarray = field(default_factory=lambda: np.zeros(0))
    theory: float = 0.0
    steps: dict[tuple[int, int], int] = field(default_factory=dict)
    ledger: dict[int, list[Spent]] = field(default_factory=dict)
    epsilon: float = math.inf  # the largest that the ledger states
    composed: float = (
        1.0  # times the scores' mu: the run's, where a score is of one step of several
    )
