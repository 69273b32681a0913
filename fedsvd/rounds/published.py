"""The second figure of a run: epsilon against someone who sees only the published model."""

from typing import Any

from fedsvd.client.rule import LocalRule
from fedsvd.privacy.plan import weighting
from fedsvd.privacy.published import published
from fedsvd.rounds.run import Run
from fedsvd.strategies.base import Strategy

ASSUMED = (
    "against who sees only the published model, if the server and the other clients are honest and "
    "their noise stays secret"
)


def published_figure(run: Run) -> dict[str, Any]:
    """Return the largest epsilon of any client, every client's, and what they assume.

    Where there is no such figure `epsilon` is None and `assumed` says why.
    """
    why = why_not(run)
    if why is not None:
        return {"epsilon": None, "assumed": why, "clients": {}}
    plan = run.ledger.plan
    uniform = weighting(run.settings) == "uniform"
    weights = [1.0 if uniform else float(c.examples) for c in plan.clients]
    found = published(run.ledger, weights) or {}
    spent = {str(client): cost.epsilon for client, cost in found.items()}
    return {"epsilon": max(spent.values()), "assumed": ASSUMED, "clients": spent}


def why_not(run: Run) -> str | None:
    """Return why nothing better than the guarantee can be said of the published model, or None."""
    settings, strategy = run.settings, run.strategy
    if not run.ledger.plan.private:
        return "no privacy"
    if not run.ledger.plan.per_example:
        return "none beside the guarantee: it is the server's noise that protects the model"
    if not isinstance(strategy, Strategy) or not strategy.mean_only:
        return "none: the strategy may use more of the replies than their mean"
    if settings.model.head == "grassmann":
        return "none: of the head's subspaces it is not the replies' mean that is published"
    if strategy.keeps:
        return "none: clients keep factors of their own"
    if settings.training.optimizer != "sgd" or strategy.local != LocalRule():
        return "none: the clients' steps are not plain SGD, to which noise adds up"
    if settings.clients.ranks is not None:
        return "none: clients of smaller ranks do not cover all directions with noise"
    if settings.attack.name != "none":
        return "none: some clients are not honest"
    return None
