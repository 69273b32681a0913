"""Who takes part in a round, and how often anybody may."""

import math
from collections.abc import Sequence
from dataclasses import dataclass

from fedsvd.randomness import Purpose, numpy_stream, uniforms
from fedsvd.settings import ClientSettings


def rounds_bound(clients: ClientSettings, rounds: int) -> int:
    """Return the largest number of rounds that any client can take part in.

    `participants` enforces it, so noise calibrated for it holds for whoever is drawn most.
    balanced: ceil(rounds m / K), m clients a round of K. all: every round. uniform, poisson:
    `clients.max_rounds`, by default two standard deviations above the mean number of draws.
    """
    m, K = clients.per_round, clients.number
    if clients.participation == "all":
        bound = rounds
    elif clients.participation == "balanced":
        bound = math.ceil(rounds * m / K)
    else:
        mean = rounds * m / K
        bound = min(rounds, math.ceil(mean + 2 * math.sqrt(mean * (1 - m / K))))
    return bound if clients.max_rounds is None else min(bound, clients.max_rounds)


@dataclass(frozen=True)
class Draw:
    """Who takes part in a round, and who was drawn but has reached the bound on its rounds."""

    clients: list[int]
    at_bound: list[int]


def participants(
    clients: ClientSettings, bound: int, seed: int | None, round: int, taken: Sequence[int]
) -> Draw:
    """Return the sorted ids of the clients of `round` (1-based).

    `taken[k]` is the number of rounds that client k has taken part in; one that has reached `bound`
    sits out. balanced: the m clients with the fewest rounds so far, ties in random order. uniform:
    m of all without replacement. poisson: each with probability m / K. all: everyone. The draw is
    from the stream (seed, "participation", round) or, if `seed` is None, from the operating system,
    and looks at no data; under uniform and poisson it does not depend on who is at the bound either,
    whose place stays empty.
    """
    rng = None if seed is None else numpy_stream(seed, Purpose.PARTICIPATION, round)
    order = [int(k) for k in uniforms(clients.number, rng).argsort(kind="stable")]
    coins = uniforms(clients.number, rng)
    m = clients.per_round
    if clients.participation == "all":
        drawn = order
    elif clients.participation == "balanced":
        drawn = sorted(order, key=lambda k: taken[k])[:m]
    elif clients.participation == "uniform":
        drawn = order[:m]
    else:
        drawn = [k for k in order if coins[k] < m / clients.number]
    return Draw(
        sorted(k for k in drawn if taken[k] < bound),
        sorted(k for k in drawn if taken[k] >= bound),
    )
