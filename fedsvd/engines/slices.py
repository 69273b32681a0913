"""Waits for Ray in slices: compiled code waits, and swallows what a signal's handler raises."""

from collections.abc import Sequence
from typing import Any

import ray

from fedsvd import interrupt

SLICE = 0.5  # seconds; a signal waits no longer
LONGEST = 60.0  # seconds of a slice in which a value travels


def first_ready(references: Sequence[Any], seconds: float = SLICE) -> list[Any]:
    """Return one reference that is ready, or none after a slice or `seconds`, if that is less.

    Raises Interrupted if a signal asked to stop at once.
    """
    with interrupt.held():
        # Where a value is ready on another node it stays there: a slice is too short to fetch it.
        found, _ = ray.wait(list(references), timeout=min(seconds, SLICE), fetch_local=False)
    return list(found)


def value_of(reference: Any) -> Any:
    """Return the value of a reference that is ready; it may have to travel.

    Ray begins anew what a slice was too short for, so every slice is twice as long. Raises what the
    task raised, and Interrupted if a signal asked to stop at once.
    """
    seconds = SLICE
    while True:
        try:
            with interrupt.held():
                return ray.get(reference, timeout=seconds)
        except ray.exceptions.GetTimeoutError:
            interrupt.look()
            seconds = min(2 * seconds, LONGEST)


def free() -> str:
    """Return how much of the cluster is free, as a phrase."""
    has, left = ray.cluster_resources(), ray.available_resources()
    kinds = [kind for kind in ("CPU", "GPU") if has.get(kind)]
    told = [f"{left.get(kind, 0):g} of {has[kind]:g} {kind}s" for kind in kinds]
    return f"{' and '.join(told) or 'nothing'} of the Ray cluster free"
