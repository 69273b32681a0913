"""What a process has found out about a model at its start, for the runs after the first.

Runs of a study differ in little: the same model before its first step is asked the same questions
again and again. The answers are found by all that they follow from.
"""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Sequence
from typing import Any, Protocol

import torch
from torch import Tensor, nn

from fedsvd.adapters.lora import factors_in
from fedsvd.client.kept import Kept
from fedsvd.data.tokens import Tokens
from fedsvd.models.base import Model
from fedsvd.settings import Settings

MOST = 64  # answers of a kind


class Worker(Protocol):
    """What is looked at of a `fedsvd.client.worker.Worker`."""

    settings: Settings
    tokens: Tokens
    device: torch.device
    model: Model
    kept: Kept | None
    weights: str
    left_out: Sequence[str]


_outputs: OrderedDict[Hashable, Tensor] = OrderedDict()
_passed: OrderedDict[Hashable, None] = OrderedDict()


def outputs(worker: Worker, rows: Sequence[int], compute: Callable[[], Tensor]) -> Tensor:
    """Return the objective's outputs (n, k) on the rows; computed if they were not before.

    They follow from every parameter and buffer of the model as it stands, from the rows' tokens and
    labels, and from how both are computed. Factors B = 0 of LoRA make A and the scale arbitrary: the
    layer adds zero.
    """
    key = (_standing(worker), _digest(worker.tokens, rows), len(rows))
    if key not in _outputs:
        _outputs[key] = compute()
    found: Tensor = _last(_outputs, key)
    return found.clone()


def forget() -> None:
    """Remember nothing any more."""
    _outputs.clear()
    _passed.clear()


def passed(key: Hashable) -> bool:
    """Return whether a check of a model with this key was clearly passed; see `checked`."""
    return key in _passed


def note(key: Hashable) -> None:
    """Remember that the check of a model with this key was clearly passed."""
    _passed[key] = None
    _last(_passed, key)


def checked(worker: Worker, trains: Sequence[str], classes: int) -> Hashable:
    """Return what a check of a model at its start follows from, but for the seed.

    `trains` names the kinds that the check of per-example gradients moves. It tells whether hooks,
    layers and padding of a model are such that an example's gradient is its own. Without kinds the
    check is that of the frozen parts that run as one operation (`fedsvd.client.shorten`). What a seed
    draws, the start of its factors, moves either by rounding alone.
    """
    s, lower = worker.settings, worker.model.lower
    named = [(n, tuple(p.shape), p.dtype) for n, p in worker.model.named_parameters()]
    kinds = [(n, type(m)) for n, m in worker.model.named_modules()]
    return (
        s.task, worker.weights, repr((s.model, s.adapter)), tuple(named), tuple(kinds), tuple(trains),
        tuple(worker.left_out), classes, tuple(worker.tokens.columns), worker.tokens.pad_id,
        str(worker.device), torch.get_num_threads(), lower and lower.start,
        worker.kept is not None and worker.kept.trains, s.training.gradient_checkpointing,
    )  # fmt: skip


def _last(held: OrderedDict[Hashable, Any], key: Hashable) -> Any:
    """Return a value as the one that was asked for last, and give up the oldest beyond `MOST`."""
    held.move_to_end(key)
    while len(held) > MOST:
        held.popitem(last=False)
    return held[key]


def _standing(worker: Worker) -> Hashable:
    s, model = worker.settings, worker.model
    idle = [m for m in model.layers.values() if _adds_nothing(m)]
    skipped = {id(f.weight) for m in idle for f in factors_in(m).values()}
    found = hashlib.sha256()
    for name, value in model.state_dict(keep_vars=True).items():
        if id(value) not in skipped:
            _add(found, name, value)
    kinds = tuple((n, type(m)) for n, m in model.named_modules())
    return (
        s.task, found.digest(), kinds, worker.weights, repr(s.model),
        "" if len(idle) == len(model.layers) else repr(s.adapter), s.training.microbatch_tokens,
        model.precision, str(worker.device), torch.get_num_threads(),
        model.lower and model.lower.start, worker.kept is not None,
    )  # fmt: skip


def _adds_nothing(module: nn.Module) -> bool:
    """Return whether a layer is LoRA's with B = 0 and a finite A."""
    factors = factors_in(module)
    if not factors:
        return False
    return not bool(factors["B"].weight.any()) and bool(factors["A"].weight.isfinite().all())


def _digest(tokens: Tokens, rows: Sequence[int]) -> bytes:
    found = hashlib.sha256(str(tokens.pad_id).encode())
    index = torch.as_tensor(rows, dtype=torch.int64)
    for name, column in tokens.columns.items():
        _add(found, name, torch.cat([column[int(row)] for row in rows]) if len(rows) else index)
    _add(found, "lengths", tokens.lengths[index])
    _add(found, "labels", tokens.labels[index])
    if tokens.counted is not None and len(rows):
        _add(found, "counted", torch.cat([tokens.counted[int(row)] for row in rows]))
    if tokens.choices is not None:
        texts, each = tokens.scored
        found.update(_digest(texts, [each * int(row) + i for row in rows for i in range(each)]))
    return found.digest()


def _add(found: Any, name: str, value: Tensor) -> None:
    flat = value.detach().cpu().contiguous().reshape(-1)
    found.update(f"|{name}|{tuple(value.shape)}|{value.dtype}|".encode())
    found.update(flat.view(torch.uint8).numpy().data)
