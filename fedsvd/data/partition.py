"""Dealing the training examples to clients."""

from collections.abc import Sequence

import numpy as np

from fedsvd.data.coins import coins
from fedsvd.errors import InputError, wrong
from fedsvd.randomness import Purpose, numpy_stream
from fedsvd.settings import PartitionSettings

# Which share of each label's examples clients 0 to 5 hold in the split of Lee et al. (NeurIPS 2025,
# arXiv 2505.12805), by the number of labels: a draw of theirs from Dirichlet(0.5), to three digits.
PUBLISHED = {
    2: (
        (0.196, 0.469, 0.187, 0.018, 0.130, 0.001),
        (0.020, 0.100, 0.004, 0.089, 0.186, 0.600),
    ),
    3: (
        (0.104, 0.025, 0.673, 0.024, 0.100, 0.073),
        (0.049, 0.016, 0.007, 0.405, 0.058, 0.465),
        (0.333, 0.168, 0.113, 0.000, 0.064, 0.322),
    ),
}


def partition(
    texts: Sequence[tuple[str, ...]], labels: np.ndarray, clients: int,
    settings: PartitionSettings, seed: int, classes: int | None = None,
    values: Sequence[str] | None = None,
) -> list[np.ndarray]:  # fmt: skip
    """Return one sorted array of positions into `texts` and `labels` (n,) for each client.

    "dirichlet" draws, for every label, the clients' shares from Dirichlet(alpha, ..., alpha), and
    each example of the label goes to a client with these probabilities (Hsu et al., 2019, arXiv
    1909.06335); with `values` (n) for every value in place of every label. "iid" has equal shares.
    "quantity" draws one vector of shares from Dirichlet(alpha, ..., alpha) for all examples (Li et
    al., ICDE 2022, arXiv 2102.02079). "shards" gives each client some pieces of the examples in the
    order of their labels (McMahan et al., AISTATS 2017, arXiv 1602.05629; `_by_shards`). An example
    goes by its own coin, so within a draw one example more or less moves no other. A draw that leaves
    a client with fewer than `min_examples` is repeated up to `draws` times; then InputError names the
    client. InputError also where no split is published for this number of labels; it is for six
    clients.
    """
    number = int(labels.max(initial=0)) + 1 if classes is None else classes
    published = _published(number) if settings.name == "published" else None
    groups = _groups(labels, values)
    for draw in range(settings.draws):
        drawn = coins(texts, seed, Purpose.PARTITION, draw)
        if settings.name == "shards":
            owners = _by_shards(labels, drawn, number, clients * settings.shards, seed, draw)
        else:
            owners = np.zeros(len(texts), dtype=np.int64)
            for name, (label, mine) in groups.items():
                # A stream for each group: whether another one occurs changes nothing.
                shares = np.full(clients, 1 / clients)
                if settings.name in ("dirichlet", "quantity"):
                    stream = name if settings.name == "dirichlet" else "quantity"
                    rng = numpy_stream(seed, Purpose.PARTITION, draw, stream)
                    shares = rng.dirichlet(np.full(clients, settings.alpha))
                elif published is not None:
                    shares = published[label]
                owners[mine] = np.searchsorted(np.cumsum(shares)[:-1], drawn[mine], side="right")
        owners %= clients
        sizes = np.bincount(owners, minlength=clients)
        if sizes.min() >= settings.min_examples:
            return np.split(np.argsort(owners, kind="stable"), np.cumsum(sizes)[:-1])
    raise InputError(
        f"partition: client {int(np.argmin(sizes))} of {clients} is left with {min(sizes)} examples "
        f"(partition.min_examples={settings.min_examples}) in each of {settings.draws} draws; use "
        "fewer clients, a larger partition.alpha or another seed"
    )


def _groups(
    labels: np.ndarray, values: Sequence[str] | None
) -> dict[str, tuple[int, np.ndarray]]:  # fmt: skip
    """Return the positions of each label, or of each value, with the label, by a stream's name."""
    kind = "label" if values is None else "value"
    names, places = np.unique(labels if values is None else np.array(values), return_inverse=True)
    order = np.argsort(places, kind="stable")
    positions = np.split(order, np.cumsum(np.bincount(places, minlength=len(names)))[:-1])
    return {
        f"{kind} {name}": (int(name) if values is None else 0, mine)
        for name, mine in zip(names.tolist(), positions, strict=True)
    }


def _by_shards(
    labels: np.ndarray, drawn: np.ndarray, classes: int, shards: int, seed: int, draw: int
) -> np.ndarray:  # fmt: skip
    """Return which shard (n,) each example is in; shard s is of client s modulo their number.

    Examples in the order of labels, and of coins within a label, are cut into `shards` pieces of
    equal length on [0, 1), where every label is 1 / classes long; which piece is which shard is
    drawn. The paper cuts after equal numbers of examples. Then a row more would move others over
    every edge behind it; here pieces are of equal size only if the labels are equally frequent.
    """
    piece = np.floor((labels + drawn) / classes * shards).astype(np.int64)
    order = numpy_stream(seed, Purpose.PARTITION, draw, "shards").permutation(shards)
    found: np.ndarray = order[np.minimum(piece, shards - 1)]
    return found


def _published(number: int) -> np.ndarray:
    """Return the published shares (K, 6), each label's summing to 1: three digits do not quite."""
    if number not in PUBLISHED:
        raise wrong("partition", "published", f"used with 2 or 3 labels; the task has {number}")
    shares = np.array(PUBLISHED[number])
    found: np.ndarray = shares / shares.sum(axis=1, keepdims=True)
    return found
