"""Rows that the model at hand cannot take: texts of no tokens, or of more than it has places for."""

import numpy as np
import torch
from torch import nn

from fedsvd.data.task import Task
from fedsvd.data.tokens import Tokens
from fedsvd.errors import InputError
from fedsvd.models.usable import taken
from fedsvd.objectives.build import objective_of
from fedsvd.settings import Settings
from fedsvd.terminal import complain


def only_usable(
    settings: Settings, task: Task, tokens: Tokens, backbone: nn.Module, parts: list[np.ndarray]
) -> list[np.ndarray]:
    """Return each client's rows if the backbone, on the CPU, can take every text of the task.

    Otherwise raises InputError that names the first row. A client's own rows are left out instead,
    and their number is told on stderr: an error would tell the server of them.
    """
    name = settings.model.name
    texts, each = tokens.scored
    most = taken(name, backbone, texts)
    lengths = texts.lengths.view(-1, each).amax(dim=1)
    long = torch.nonzero(lengths > most).flatten().tolist()
    unfit = sorted({*tokens.empty, *long})
    if not unfit:
        return parts
    if settings.partition.name == "own" and settings.partition.holder is not None:
        complain(
            f"warning: {task.source}: {len(unfit)} rows give no tokens, or more than the {most} that "
            f"{name} takes, and are left out"
        )
        return [part[~np.isin(part, unfit)] for part in parts]
    if tokens.empty:
        row, rest = tokens.empty[0], len(tokens.empty) - 1
        why = f"{objective_of(settings.task).unusable} with the tokeniser of {name!r}"
        why = tokens.faults.get(row, why)
        hint = "take the row out, or another model"
    else:
        row, rest = long[0], len(long) - 1
        length = int(lengths[row])
        why = f"its text gives {length} tokens after truncation, {name!r} takes {most}"
        hint = f"set model.max_length to {most} at most"
    where = task.rows[row] if task.rows else task.source
    more = f" (and {rest} more rows)" if rest else ""
    raise InputError(f"{where}: {why}{more}; {hint}")
