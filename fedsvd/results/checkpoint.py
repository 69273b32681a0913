"""States as safetensors files."""

import os
from pathlib import Path

from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file

from fedsvd.errors import InputError
from fedsvd.lowrank import AdapterState

FORMAT = "fedsvd-state-1"


def write_checkpoint(path: Path, state: AdapterState) -> None:
    """Write a state, aside and then moved into place; its round and digest are in the metadata."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    tensors = {n: t.detach().cpu().contiguous() for n, t in state.tensors().items()}
    order = "\n".join(tensors)  # safetensors sorts names; the layers' order is part of a state
    metadata = {
        "format": FORMAT,
        "round": str(state.round),
        "digest": state.digest(),
        "order": order,
    }
    save_file(tensors, aside, metadata=metadata)
    os.replace(aside, path)


def read_checkpoint(path: Path) -> AdapterState:
    """Read a state back; InputError if the file is missing, of another format, or damaged."""
    try:
        with safe_open(path, framework="pt") as file:
            metadata = file.metadata() or {}
            found = {name: file.get_tensor(name) for name in file.keys()}  # noqa: SIM118
    except (OSError, SafetensorError) as error:
        raise InputError(f"{path}: cannot be read: {error}") from error
    if metadata.get("format") != FORMAT:
        raise InputError(f"{path}: is not a checkpoint of this software ({FORMAT})")
    names = metadata["order"].split("\n") if metadata["order"] else []
    state = AdapterState.from_tensors({n: found[n] for n in names}, int(metadata["round"]))
    if state.digest() != metadata["digest"]:
        raise InputError(f"{path}: is damaged: its digest does not match its tensors")
    return state
