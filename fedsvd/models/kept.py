"""A process's pretrained backbone, read from its files once for all runs that train on it."""

import copy
import gc
import weakref
from collections.abc import Hashable
from dataclasses import dataclass
from pathlib import Path

import torch
from torch import nn

from fedsvd.adapters.stored import store
from fedsvd.data.kept import signature
from fedsvd.models.backbone import load_backbone, locate
from fedsvd.models.digest import weights_digest
from fedsvd.models.reported import pooler
from fedsvd.settings import ModelSettings


@dataclass
class _Held:
    """A backbone that nothing was attached to, and the last module that shares its weights."""

    key: Hashable
    plain: nn.Module
    digest: str
    given: weakref.ref[nn.Module]


_held: _Held | None = None


def kept_backbone(settings: ModelSettings) -> tuple[nn.Module, str]:
    """Return a backbone as `load_backbone` does, and the digest of its weights.

    The module is the caller's own, to attach things to; the values of its weights are in the memory
    of what is kept, so one that is given up costs nothing. Before they are given again they are
    looked at, every byte (SHA-256): if a run has changed any, or its module is still in use, all is
    read anew. A model of the hub is read once by a process, whatever the hub has later.
    """
    global _held
    if settings.stored:
        _held = None
        model = load_backbone(settings)
        digest = weights_digest(model)  # of what was loaded, however it is held
        store(model, settings.dtype, settings.quantization, settings.name)
        return model, digest
    key = _key(settings)
    held = _held
    if held is None or key is None or held.key != key:
        _held = held = None  # before the next is read: a process holds one
        model = load_backbone(settings)
        digest = weights_digest(model)
        shared = _shared(model) if key is not None else None
        if shared is None:
            return model, digest
        _held = _Held(key, model, digest, weakref.ref(shared))
        return shared, digest
    if held.given() is not None:
        gc.collect()  # modules and their hooks know each other
    used = held.given() is not None
    if not used and weights_digest(held.plain) != held.digest:
        held.plain = load_backbone(settings)
        held.digest = weights_digest(held.plain)
    shared = None if used else _shared(held.plain)
    if shared is None:
        model = load_backbone(settings)
        return model, weights_digest(model)
    held.given = weakref.ref(shared)
    return shared, held.digest


def forget() -> None:
    """Keep nothing any more."""
    global _held
    _held = None


def _key(settings: ModelSettings) -> Hashable:
    """Return all that a backbone follows from, or None if that cannot be said."""
    source = locate(settings)
    held: Hashable = ()
    if source.origin != "hub":
        held = signature(Path(source.location))
        if held is None:
            return None
    return source, held, settings.name, settings.revision, settings.dropout, settings.attention


def _shared(model: nn.Module) -> nn.Module | None:
    """Return a copy whose weights have the model's memory; None of one that cannot be copied.

    Buffers are copied, and whatever the digest does not see.
    """
    seen = {n for n in model.state_dict() if not pooler(n)}
    memo: dict[int, object] = {}
    for name, p in model.named_parameters():
        if name in seen:
            memo[id(p)] = nn.Parameter(p.detach(), requires_grad=False)
    try:
        with torch.no_grad():
            return copy.deepcopy(model, memo)
    except Exception:  # a class that is not made for it
        return None
