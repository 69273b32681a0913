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
) -> list[np.ndarray]:  # fmt: skip
    """Return one sorted array of positions into `texts` and `labels` (n,) for each client.

    "dirichlet" draws, for every label, the clients' shares from Dirichlet(alpha, ..., alpha), and
    each example of the label goes to a client with these probabilities (Hsu et al., 2019, arXiv
    1909.06335). "iid" has equal shares. An example goes by its own coin, so within a draw one
    example more or less moves no other. A draw that leaves a client with fewer than `min_examples` is
    repeated up to `draws` times; then InputError names the client. InputError also where no split is
    published for this number of labels; it is for six clients.
    """
    published = _published(labels, classes) if settings.name == "published" else None
    for draw in range(settings.draws):
        values = coins(texts, seed, Purpose.PARTITION, draw)
        owners = np.zeros(len(texts), dtype=np.int64)
        for label in np.unique(labels).tolist():
            shares = np.full(clients, 1 / clients)
            if settings.name == "dirichlet":
                # A stream for each label: whether another one occurs changes nothing.
                rng = numpy_stream(seed, Purpose.PARTITION, draw, f"label {label}")
                shares = rng.dirichlet(np.full(clients, settings.alpha))
            elif published is not None:
                shares = published[label]
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


def _published(labels: np.ndarray, classes: int | None) -> np.ndarray:
    """Return the published shares (K, 6), each label's summing to 1: three digits do not quite."""
    number = int(labels.max(initial=0)) + 1 if classes is None else classes
    if number not in PUBLISHED:
        raise wrong("partition", "published", f"used with 2 or 3 labels; the task has {number}")
    shares = np.array(PUBLISHED[number])
    found: np.ndarray = shares / shares.sum(axis=1, keepdims=True)
    return found
