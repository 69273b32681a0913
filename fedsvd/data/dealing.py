"""The parts of clients of a task that one process holds whole, as in a simulation."""

from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path

import numpy as np

from fedsvd.data.clients import client_files
from fedsvd.data.natural import natural
from fedsvd.data.partition import partition
from fedsvd.data.partitioner import by_partitioner
from fedsvd.data.task import Task, load_task
from fedsvd.errors import InputError
from fedsvd.settings import DataSettings, Settings


def deal_whole(
    settings: Settings, data: DataSettings
) -> tuple[Task, list[np.ndarray], tuple[str, ...]]:
    """Return a task, each client's rows of it, and the clients' ids in the data if they have any.

    `data` has the columns that the task's objective reads. Raises InputError.
    """
    given, number = settings.partition, settings.clients.number
    data = replace(data, client=_column(settings))
    task = load_task(
        data, settings.seed, private=settings.privacy.unit != "none", by_file=given.name == "files"
    )
    owners = [task.owners[i] for i in task.train] if task.owners else None
    dealt, ids = _dealt(settings, data, task, owners, number)
    return task, [task.train[positions] for positions in dealt], tuple(ids)


def _dealt(
    settings: Settings, data: DataSettings, task: Task, owners: Sequence[str] | None, number: int
) -> tuple[Sequence[np.ndarray], Sequence[str]]:
    """Return positions in `task.train`, and the clients' ids."""
    given = settings.partition
    if given.name == "natural" and owners is not None:
        return natural(owners, number, given, f"column {data.client!r}", data.clients)
    if given.name == "files" and owners is not None and data.path is not None:
        files = [f.name for f in client_files(Path(data.path).expanduser(), data).clients]
        return natural(owners, number, given, f"{data.path}, one file a client,", sorted(files))
    texts, labels = [task.texts[i] for i in task.train], task.labels[task.train]
    if given.name == "flower":
        columns: dict[str, Sequence[object]] = {
            name: [text[k] for text in texts] for k, name in enumerate(data.text)
        }
        if data.label is not None:
            columns[data.label] = labels.tolist()
        if owners is not None and data.client is not None:
            columns[data.client] = owners
        return by_partitioner(columns, data.label, number, given, settings.seed), ()
    return partition(texts, labels, number, given, settings.seed, task.classes, owners), ()


def _column(settings: Settings) -> str | None:
    """Return the column that says whose each row is or how rows are dealt, None if none does."""
    given = settings.partition
    if given.name in ("dirichlet", "flower"):
        return given.column
    if given.name != "natural":
        return None
    column = given.column or settings.data.client
    if column is None:
        raise InputError(
            "partition.column: missing; partition=natural needs the column that says whose a row is"
        )
    return column
