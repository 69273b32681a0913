"""Who takes part in a round, and how often anybody may."""

import math
from collections.abc import Sequence

from fedsvd.randomness import Purpose, numpy_stream
from fedsvd.settings import ClientSettings


def rounds_bound(clients: ClientSettings, rounds: int) -> int:
    """Return the largest number of rounds that any client can take part in.

    It is enforced by `participants`, so noise calibrated for it holds for whoever is drawn most.
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


def participants(
    clients: ClientSettings, rounds: int, seed: int, round: int, taken: Sequence[int]
) -> list[int]:
    """Return the sorted ids of the clients of `round` (1-based).

    `taken[k]` is the number of rounds that client k has taken part in; one at its bound is left
    out. balanced: the m clients with the fewest rounds so far, ties in random order. uniform: m of
    the rest without replacement. poisson: each with probability m / K. all: everyone. The draw is
    from the stream (seed, "participation", round) and looks at no data.
    """
    bound = rounds_bound(clients, rounds)
    rng = numpy_stream(seed, Purpose.PARTICIPATION, round)
    order = [int(k) for k in rng.permutation(clients.number)]
    coins = rng.random(clients.number)
    able = [k for k in order if taken[k] < bound]
    if clients.participation == "all":
        chosen = able
    elif clients.participation == "balanced":
        chosen = sorted(able, key=lambda k: taken[k])[: clients.per_round]
    elif clients.participation == "uniform":
        # Drawn among all, so that a client at its bound leaves its place empty: the draw itself
        # never depends on who is spent.
        chosen = [k for k in order[: clients.per_round] if taken[k] < bound]
    else:
        chosen = [k for k in able if coins[k] < clients.per_round / clients.number]
    return sorted(chosen)
