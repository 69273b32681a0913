"""Epsilon against someone who sees only the published model, not what single clients send.

The model is a function of the weighted means of the clients' states, round by round. In a mean the
other clients' noise lies on top of a client's own: that of everybody's last local step, which is
added to what comes before and independent of it. Earlier local steps pass through the model's
gradients, and only the client's own noise is certain to cover them. docs/published_model.md has the
proof, and why no more can be said.
"""

import math
from collections.abc import Mapping, Sequence

from fedsvd.privacy.accounting import Cost, Event, cost, merge
from fedsvd.privacy.ledger import Ledger, Spent

MOST_NOISES = 4  # different ones of a client's events; beyond, they are rounded down to a grid
GRID = 1.01


def published(ledger: Ledger, weights: Sequence[float]) -> dict[int, Cost] | None:
    """Return what each client's part in the published model costs; None without DP-SGD at clients.

    `weights[k]` is proportional to client k's weight p_k in the means. Assumed: the server and the
    other clients follow the protocol and keep noise and batches to themselves; the clients' steps
    are plain SGD, with or without momentum; the server uses nothing of the replies but their mean.
    Who took part in which round, and all the means, may be known.
    """
    plan = ledger.plan
    if not plan.per_example:
        return None
    assert plan.delta is not None
    assert plan.accountant is not None
    scales = [
        weight * planned.noise_multiplier / planned.expected_batch
        for weight, planned in zip(weights, plan.clients, strict=True)
    ]
    together = mixed(ledger.events)
    found = {}
    for planned in plan.clients:
        client, events = planned.client, []
        for spent in ledger.events.get(client, []):
            others = together.get(spent.round, ()) if spent.aggregated else ()
            events += mean_events(spent, scales[client], [scales[k] for k in others if k != client])
        found[client] = cost(_rounded(merge(events)), plan.delta, plan.accountant)
    return found


def mixed(events: Mapping[int, Sequence[Spent]]) -> dict[int, list[int]]:
    """Return which clients' replies went into the mean of each round."""
    found: dict[int, list[int]] = {}
    for client in sorted(events):
        for number in sorted({e.round for e in events[client] if e.aggregated}):
            found.setdefault(number, []).append(client)
    return found


def mean_events(spent: Spent, scale: float, others: Sequence[float]) -> list[Event]:
    """Return the mechanisms by which a client's steps of a round show in the round's mean.

    `scale` is p sigma / b of the client, `others` the same of those that it was averaged with: the
    last step's noise multiplier becomes sigma sqrt(sum of all scale^2) / scale.
    """
    sigma, rate = spent.noise_multiplier, spent.sample_rate
    if not others or scale <= 0:
        return [(sigma, rate, spent.steps)]
    joint = sigma * math.hypot(scale, *others) / scale
    return [(sigma, rate, spent.steps - 1), (joint, rate, min(1, spent.steps))]


def _rounded(events: Sequence[Event]) -> Sequence[Event]:
    """Return few enough kinds of events: noises rounded down by at most 1 %, so never too little."""
    if len(events) <= MOST_NOISES:
        return events
    return [
        (min(sigma, GRID ** math.floor(math.log(sigma, GRID))), rate, steps)
        for sigma, rate, steps in events
    ]
