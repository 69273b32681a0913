"""The most rounds that any client can take part in: what its noise is calibrated for."""

import math

from fedsvd.settings import ClientSettings


def rounds_bound(clients: ClientSettings, rounds: int, limited: bool = True) -> int:
    """Return the largest number of rounds that any client can take part in.

    The draw enforces it (`fedsvd.rounds.participation`), so noise calibrated for it holds for whoever
    is drawn most. balanced: ceil(rounds m / K), m clients a round of K. all: every round; so for dpp,
    which may draw the same clients again and again, unless `clients.max_rounds` is less. uniform,
    poisson: `clients.max_rounds`, by default two standard deviations above the mean number of draws;
    with `limited` false, as in published recipes, by default every round.
    """
    m, K = clients.per_round, clients.number
    if clients.participation in ("all", "dpp"):
        bound = rounds
    elif clients.participation == "balanced":
        bound = math.ceil(rounds * m / K)
    elif not limited:
        bound = rounds
    else:
        mean = rounds * m / K
        bound = min(rounds, math.ceil(mean + 2 * math.sqrt(mean * (1 - m / K))))
    return bound if clients.max_rounds is None else min(bound, clients.max_rounds)
