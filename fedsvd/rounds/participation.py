"""Who takes part in a round, and how often anybody may."""

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from fedsvd.privacy.bounds import rounds_bound
from fedsvd.randomness import Purpose, numpy_stream, uniforms
from fedsvd.rounds.run import Run
from fedsvd.rounds.volume import volume_sample
from fedsvd.settings import ClientSettings

__all__ = ["Draw", "all_spent", "draw", "participants", "rounds_bound"]


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
    m of all without replacement. poisson: each with probability m / K. all: everyone. dpp: m whose
    public `features` span a large volume (`fedsvd.rounds.volume`). The draw is from the stream
    (seed, "participation", round) or, if `seed` is None, from the operating system, and looks at no
    data; under uniform, poisson and dpp it does not depend on who is at the bound either, whose
    place stays empty.
    """
    rng = None if seed is None else numpy_stream(seed, Purpose.PARTICIPATION, round)
    shuffled = uniforms(clients.number, rng).argsort(kind="stable")
    order: list[int] = shuffled.tolist()
    coins = uniforms(clients.number, rng)
    m = clients.per_round
    if clients.participation == "all":
        drawn = order
    elif clients.participation == "balanced":
        fewest = np.asarray(taken)[shuffled].argsort(kind="stable")
        drawn = shuffled[fewest[:m]].tolist()
    elif clients.participation == "uniform":
        drawn = order[:m]
    elif clients.participation == "dpp":
        assert clients.features is not None  # as the settings have checked
        drawn = volume_sample(clients.features, m, coins, uniforms(m, rng))
    else:
        drawn = [k for k in order if coins[k] < m / clients.number]
    return Draw(
        sorted(k for k in drawn if taken[k] < bound),
        sorted(k for k in drawn if taken[k] >= bound),
    )


def draw(run: Run, number: int) -> tuple[list[int], list[int]]:
    """Return who takes part in a round of a run, and who was drawn and may not."""
    clients, plan = run.settings.clients, run.worker.plan
    # Whoever holds the seed, as the run's config.yaml does, would know who took part.
    seed = None if plan.hides_clients else run.settings.seed
    drawn = participants(clients, plan.rounds_bound, seed, number, run.rounds_taken)
    run.ledger.reserved = run.journal.reserved(number)
    spent = [k for k in drawn.clients if run.ledger.would_exceed(k)]
    run.ledger.reserved = {}
    return [k for k in drawn.clients if k not in spent], sorted({*drawn.at_bound, *spent})


def all_spent(run: Run) -> bool:
    """Return whether no client may take part in another round."""
    bound = run.worker.plan.rounds_bound
    below = (k for k, taken in enumerate(run.rounds_taken) if taken < bound)
    return all(run.ledger.would_exceed(k) for k in below)
