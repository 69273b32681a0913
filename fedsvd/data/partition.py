"""Dealing the training examples to clients."""

import numpy as np

from fedsvd.errors import InputError
from fedsvd.randomness import Purpose, numpy_stream
from fedsvd.settings import PartitionSettings


def partition(
    labels: np.ndarray, clients: int, settings: PartitionSettings, seed: int
) -> list[np.ndarray]:
    """Return one sorted array of positions into `labels` (n,) for each client.

    "dirichlet" draws, for every label, the clients' shares from Dirichlet(alpha, ..., alpha) and
    deals the label's shuffled examples accordingly (Hsu et al., 2019, arXiv 1909.06335). "iid"
    deals a shuffled deck. A draw that leaves a client with fewer than `min_examples` is repeated up
    to `draws` times; then InputError names the client.
    """
    for draw in range(settings.draws):
        rng = numpy_stream(seed, Purpose.PARTITION, draw)
        if settings.name == "iid":
            parts = [np.sort(p) for p in np.array_split(rng.permutation(len(labels)), clients)]
        else:
            parts = _dirichlet(labels, clients, settings.alpha, rng)
        sizes = [len(p) for p in parts]
        if min(sizes) >= settings.min_examples:
            return parts
    raise InputError(
        f"partition: client {int(np.argmin(sizes))} of {clients} is left with {min(sizes)} examples "
        f"(partition.min_examples={settings.min_examples}) in each of {settings.draws} draws; use "
        "fewer clients, a larger partition.alpha or another seed"
    )


def _dirichlet(
    labels: np.ndarray, clients: int, alpha: float, rng: np.random.Generator
) -> list[np.ndarray]:
    """Deal each label's examples by Dirichlet shares."""
    parts: list[list[np.ndarray]] = [[] for _ in range(clients)]
    for label in np.unique(labels):
        members = rng.permutation(np.flatnonzero(labels == label))
        shares = rng.dirichlet(np.full(clients, alpha))
        cuts = np.round(np.cumsum(shares)[:-1] * len(members)).astype(int)
        for part, dealt in zip(parts, np.split(members, cuts), strict=True):
            part.append(dealt)
    return [np.sort(np.concatenate(part)) for part in parts]
