"""Dealing the training examples to clients."""

from collections.abc import Sequence

import numpy as np

from fedsvd.data.coins import coins
from fedsvd.errors import InputError
from fedsvd.randomness import Purpose, numpy_stream
from fedsvd.settings import PartitionSettings


def partition(
    texts: Sequence[tuple[str, ...]], labels: np.ndarray, clients: int,
    settings: PartitionSettings, seed: int,
) -> list[np.ndarray]:  # fmt: skip
    """Return one sorted array of positions into `texts` and `labels` (n,) for each client.

    "dirichlet" draws, for every label, the clients' shares from Dirichlet(alpha, ..., alpha), and
    each example of the label goes to a client with these probabilities (Hsu et al., 2019, arXiv
    1909.06335). "iid" has equal shares. An example goes by its own coin, so within a draw one
    example more or less moves no other. A draw that leaves a client with fewer than `min_examples` is
    repeated up to `draws` times; then InputError names the client.
    """
    for draw in range(settings.draws):
        values = coins(texts, seed, Purpose.PARTITION, draw)
        owners = np.zeros(len(texts), dtype=np.int64)
        for label in np.unique(labels).tolist():
            shares = np.full(clients, 1 / clients)
            if settings.name == "dirichlet":
                # A stream for each label: whether another one occurs changes nothing.
                rng = numpy_stream(seed, Purpose.PARTITION, draw, f"label {label}")
                shares = rng.dirichlet(np.full(clients, settings.alpha))
            mine = labels == label
            owners[mine] = np.searchsorted(np.cumsum(shares)[:-1], values[mine], side="right")
        sizes = np.bincount(owners, minlength=clients)
        if sizes.min() >= settings.min_examples:
            return np.split(np.argsort(owners, kind="stable"), np.cumsum(sizes)[:-1])
    raise InputError(
        f"partition: client {int(np.argmin(sizes))} of {clients} is left with {min(sizes)} examples "
        f"(partition.min_examples={settings.min_examples}) in each of {settings.draws} draws; use "
        "fewer clients, a larger partition.alpha or another seed"
    )
