"""Whether a run has trained anything: one in which nothing did is no success."""

from collections.abc import Mapping, Sequence
from typing import Any

from fedsvd.errors import NothingTrained
from fedsvd.rounds.evaluation import reasons

MOST = 3  # reasons that are told


def check_trained(history: Sequence[Mapping[str, Any]]) -> None:
    """Raise NothingTrained, with the reasons, unless some round made something of a reply."""
    if any(_made_something(metrics) for metrics in history):
        return
    rounds = [metrics for metrics in history if metrics["round"]]
    why = []
    nothing, left_out = sum(m.get("not_aggregated", 0) for m in rounds), reasons(rounds)
    if nothing:
        why.append(f"the strategy made nothing of {nothing} replies")
    if left_out:
        most = sorted(left_out.items(), key=lambda one: -one[1])[:MOST]
        told = "; ".join(f"{times} x {reason[:200]}" for reason, times in most)
        why.append(f"{sum(left_out.values())} replies were left out ({told})")
    raise NothingTrained(
        f"nothing trained in {len(rounds)} rounds: {', '.join(why) or 'no client took part'}"
    )


def _made_something(metrics: Mapping[str, Any]) -> bool:
    replies = len(metrics["clients"]) - len(metrics.get("failed", {}))
    return replies > 0 and "not_aggregated" not in metrics
