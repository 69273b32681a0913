"""Clients as the data has them: a column, or the file, says whose each row is."""

from collections import Counter
from collections.abc import Sequence

import numpy as np

from fedsvd.errors import InputError, wrong
from fedsvd.settings import PartitionSettings

SHOWN = 5  # ids in a message


def natural(
    owners: Sequence[str], clients: int, settings: PartitionSettings, place: str,
    known: Sequence[str] | None = None,
) -> tuple[list[np.ndarray], list[str]]:  # fmt: skip
    """Return each client's positions in `owners`, sorted, and the clients' ids in their order.

    The clients are `partition.ids`, otherwise those that are publicly `known`, otherwise every id
    that occurs, sorted. `place` is where ids stand, for messages: "column 'user'". With
    `partition.small=drop` clients below `partition.min_examples` are none. Raises InputError if the
    number of clients is not `clients.number`, if an id is not among them, or if a client has fewer
    than `partition.min_examples`.
    """
    counts = Counter(owners)
    chosen = known if settings.ids is None else settings.ids
    ids = sorted(counts) if chosen is None else list(chosen)
    strange = sorted(set(counts) - set(ids))
    if strange:
        raise InputError(
            f"partition.ids: {place} holds {_some(strange)}, which are not among {_some(ids)}"
        )
    least, which = settings.min_examples, f"the clients in {place}"
    if settings.small == "drop":
        ids = [key for key in ids if counts[key] >= least]
        which += f" that have {least} training examples"
    if len(ids) != clients:
        raise wrong("clients.number", clients, f"{len(ids)}, {which}: {_some(ids)}")
    small = min(ids, key=lambda key: counts[key])
    if counts[small] < least:
        raise InputError(
            f"partition.min_examples: client {small!r} of {place} has {counts[small]} training "
            f"examples, fewer than {least}; without privacy partition.small=drop leaves such out"
        )
    position = {key: k for k, key in enumerate(ids)}
    held = np.fromiter((position.get(key, clients) for key in owners), np.int64, len(owners))
    order = np.argsort(held, kind="stable")
    edges = np.cumsum(np.bincount(held, minlength=clients + 1))[:clients]
    return np.split(order, edges)[:clients], ids


def _some(ids: Sequence[str]) -> str:
    more = f" and {len(ids) - SHOWN} more" if len(ids) > SHOWN else ""
    return ", ".join(map(repr, ids[:SHOWN])) + more
