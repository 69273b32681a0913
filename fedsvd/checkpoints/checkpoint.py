"""Checkpoints: a state, what clients keep, and the facts of a run, in one safetensors file."""

import hashlib
import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load, save
from torch import Tensor

from fedsvd.errors import InputError
from fedsvd.files import CLOSED, write_bytes
from fedsvd.lowrank import AdapterState

FORMAT = "fedsvd-checkpoint-1"
STATE, OTHER = "state/", "other/"
FACTS, CHECKSUM = "facts", "sha256"


@dataclass(frozen=True)
class Checkpoint:
    """What a run needs to go on.

    `state`: the global state. `tensors`: what clients and a stateful strategy keep, by names of their
    own. `facts`: JSON values (round, ledger, identity, counters). See `fedsvd.checkpoints.resume`.
    """

    state: AdapterState
    tensors: Mapping[str, Tensor] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)


def write_checkpoint(
    path: Path,
    state: AdapterState,
    tensors: Mapping[str, Tensor] | None = None,
    facts: Mapping[str, Any] | None = None,
) -> None:
    """Write a checkpoint, whole or not at all; StorageError if it cannot be written.

    Its owner alone can read it: what clients keep is in it as it is, under no guarantee.
    The SHA-256 in its metadata covers every tensor's name, dtype, shape and bytes and the facts.
    """
    named = {f"{STATE}{n}": t for n, t in state.tensors().items()}
    named.update({f"{OTHER}{n}": t for n, t in (tensors or {}).items()})
    # A copy of its own for each: safetensors refuses tensors that share memory.
    stored = {n: t.detach().cpu().clone(memory_format=torch.contiguous_format)
              for n, t in named.items()}  # fmt: skip
    # safetensors sorts names; the layers' order is part of a state.
    told = {"round": state.round, "order": list(stored), "facts": dict(facts or {})}
    text = json.dumps(told, allow_nan=True)
    metadata = {"format": FORMAT, FACTS: text, CHECKSUM: _checksum(stored, text)}
    write_bytes(path, save(stored, metadata), CLOSED)


def read_checkpoint(path: Path) -> AdapterState:
    """Return the state in a checkpoint; see `read_whole`."""
    return read_whole(path).state


def read_whole(path: Path) -> Checkpoint:
    """Read a checkpoint back; InputError if it is missing, of another format, or damaged.

    Nothing is unpickled and no name in the file is used as a path.
    """
    try:
        data = path.read_bytes()
        metadata = _metadata(data)
        if metadata.get("format") != FORMAT:
            raise InputError(
                f"{path}: is not a checkpoint of this software: its format is "
                f"{metadata.get('format')!r}, not {FORMAT!r}"
            )
        stored = load(data)
        if _checksum(stored, metadata[FACTS]) != metadata[CHECKSUM]:
            raise ValueError("its checksum does not match its content")
        told = json.loads(metadata[FACTS])
        order = told["order"]
        state = {n.removeprefix(STATE): stored[n] for n in order if n.startswith(STATE)}
        other = {n.removeprefix(OTHER): stored[n] for n in order if n.startswith(OTHER)}
        return Checkpoint(
            AdapterState.from_tensors(state, int(told["round"])), other, dict(told["facts"])
        )
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error
    except (SafetensorError, ValueError, KeyError, TypeError, RecursionError) as error:
        reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
        raise InputError(f"{path}: is damaged: {reason}") from error


def _metadata(data: bytes) -> dict[str, Any]:
    """Return the metadata of a safetensors file; ValueError if its header cannot be parsed."""
    length = int.from_bytes(data[:8], "little")
    if len(data) < 8 or 8 + length > len(data):
        raise ValueError("it ends before its header does")
    header = json.loads(data[8 : 8 + length])
    found = header.get("__metadata__", {}) if isinstance(header, dict) else {}
    return found if isinstance(found, dict) else {}


def _checksum(tensors: Mapping[str, Tensor], facts: str) -> str:
    sha = hashlib.sha256(facts.encode())
    for name, tensor in sorted(tensors.items()):
        sha.update(f"|{name}|{tuple(tensor.shape)}|{tensor.dtype}|".encode())
        sha.update(tensor.reshape(-1).view(torch.uint8).numpy().data)
    return sha.hexdigest()
