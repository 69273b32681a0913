"""Dealing examples with a partitioner of flwr-datasets, or one that is derived from its class."""

import importlib.util
import inspect
import warnings
from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import numpy as np

from fedsvd.errors import InputError, one_of, wrong
from fedsvd.kinds import fitting
from fedsvd.plugins import find_plugin
from fedsvd.randomness import Purpose, numpy_stream
from fedsvd.settings import PartitionSettings
from fedsvd.settings.data import KEYS

ROW = "fedsvd_row"  # a column with the position of each example, by which parts are recognised


def by_partitioner(
    columns: Mapping[str, Sequence[Any]], label: str | None, clients: int,
    settings: PartitionSettings, seed: int,
) -> list[np.ndarray]:  # fmt: skip
    """Return one sorted array of positions for each client, as the partitioner deals the examples.

    `columns` are what it may look at, all of n values; it sees a `datasets.Dataset` of them. It is
    made with `partition`'s options and, where it takes them and they are not among these,
    num_partitions, partition_by (`partition.column` or `label`), alpha, and a seed that follows from
    the run's. `label` is None where rows have none. Raises InputError if it needs a column and there
    is none, if the package is missing, the class is no partitioner, refuses its options or the data,
    deals to another number of clients, gives an example to two clients, or gives
    a client fewer than `partition.min_examples`.
    """
    from datasets import Dataset

    partitioner, name = _partitioner(label, clients, settings, seed), settings.target
    number = len(next(iter(columns.values())))
    data = Dataset.from_dict({**columns, ROW: list(range(number))})
    with _quiet():
        try:
            partitioner.dataset = data
            count = int(partitioner.num_partitions)
            if count == clients:
                dealt = [partitioner.load_partition(k)[ROW][:] for k in range(count)]
        except Exception as error:  # a partitioner may find the data unfit in any way
            reason = " ".join(f"{type(error).__name__}: {error}".split())
            raise InputError(f"partition._target_: {name} failed: {reason[:300]}") from error
    if count != clients:
        raise wrong("clients.number", clients, f"{count}, as many as {name} deals to")
    parts = [np.sort(np.asarray(rows, dtype=np.int64)) for rows in dealt]
    owners = np.bincount(np.concatenate(parts), minlength=number)
    if owners.max(initial=0) > 1:
        raise InputError(
            f"partition._target_: {name} gives {int((owners > 1).sum())} examples to several clients "
            "each; every example is one client's"
        )
    small = min(range(clients), key=lambda k: len(parts[k]))
    if len(parts[small]) < settings.min_examples:
        raise InputError(
            f"partition.min_examples: {name} leaves client {small} with {len(parts[small])} "
            f"examples, fewer than {settings.min_examples}"
        )
    return parts


def _partitioner(label: str | None, clients: int, settings: PartitionSettings, seed: int) -> Any:
    """Return the partitioner with its options."""
    target = settings.target or ""
    if importlib.util.find_spec("flwr_datasets") is None:
        raise InputError(
            f"partition._target_: {target!r} needs the package flwr-datasets; "
            "pip install 'fedsvd[partitioners]'"
        )
    from flwr_datasets.partitioner import Partitioner

    advice = "derive it from flwr_datasets.partitioner.Partitioner"
    found = find_plugin("partition._target_", target, Partitioner, "a partitioner", advice)
    takes = inspect.signature(found).parameters
    for name in settings.options:
        if name not in takes:
            raise one_of(f"partition.{name}", name, (*takes, *KEYS))
    column = settings.column or label
    if column is None and "partition_by" in takes and "partition_by" not in settings.options:
        raise wrong(
            "partition.column", None,
            f"a column of the data that {found.__name__} looks at: rows have no labels",
        )  # fmt: skip
    stream = numpy_stream(seed, Purpose.PARTITION, "partitioner")
    known = {
        "num_partitions": clients, "partition_by": column,
        "alpha": settings.alpha, "seed": int(stream.integers(2**31)),
    }  # fmt: skip
    options = {k: v for k, v in known.items() if k in takes}
    options |= fitting("partition", found, settings.options)
    try:
        return found(**options)
    except Exception as error:
        reason = " ".join(f"{type(error).__name__}: {error}".split())
        raise InputError(
            f"partition: {found.__name__} refused {options}: {reason[:300]}"
        ) from error


@contextmanager
def _quiet() -> Iterator[None]:
    """Without the bars of progress of `datasets`, and a partitioner's advice on its options."""
    import datasets

    shown = not datasets.are_progress_bars_disabled()
    datasets.disable_progress_bars()
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        if shown:
            datasets.enable_progress_bars()
