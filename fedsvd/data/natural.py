"""Clients as the data has them: a column says whose each row is."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fedsvd.errors import InputError, wrong
from fedsvd.settings import PartitionSettings

SHOWN = 5  # ids in a message


def natural(
    owners: Sequence[str], clients: int, settings: PartitionSettings, column: str,
    known: Sequence[str] | None = None,
) -> tuple[list[np.ndarray], list[str]]:  # fmt: skip
    """Return each client's positions in `owners`, sorted, and the clients' ids in their order.

    The clients are `partition.ids`, otherwise those that are publicly `known`, otherwise every id
    that occurs, sorted. Raises InputError if their number is not `clients.number`, if an id is
    not among them, or if a client has fewer than `partition.min_examples`.
    """
    counts = Counter(owners)
    chosen = known if settings.ids is None else settings.ids
    ids = sorted(counts) if chosen is None else list(chosen)
    place = {key: k for k, key in enumerate(ids)}
    strange = sorted(set(counts) - set(ids))
    if strange:
        raise InputError(
            f"partition.ids: column {column!r} holds {_some(strange)}, which are not among "
            f"{_some(ids)}"
        )
    if len(ids) != clients:
        raise wrong(
            "clients.number", clients, f"{len(ids)}, the clients in column {column!r}: {_some(ids)}"
        )
    small = min(ids, key=lambda key: counts[key])
    if counts[small] < settings.min_examples:
        raise InputError(
            f"partition.min_examples: client {small!r} of column {column!r} has {counts[small]} "
            f"training examples, fewer than {settings.min_examples}"
        )
    held = np.fromiter((place[key] for key in owners), dtype=np.int64, count=len(owners))
    order = np.argsort(held, kind="stable")
    edges = np.cumsum(np.bincount(held, minlength=clients))[:-1]
    return np.split(order, edges), ids


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(map(repr, ids[:SHOWN])) + more
