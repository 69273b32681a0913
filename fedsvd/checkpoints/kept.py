"""What clients and stateful strategies keep, as tensors and JSON; nothing is pickled."""

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, MetricRecord, RecordDict
from flwr.serverapp.strategy import Strategy as FlowerStrategy
from torch import Tensor

from fedsvd.errors import InputError
from fedsvd.records import from_record, to_record

OWN = (
    "_state",
    "device",
    "noise",
    "server",
)  # of our strategies: of one round, or made by the settings


def pack_clients(states: Mapping[int, RecordDict]) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return the clients' states as named tensors and JSON values."""
    tensors: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    for client, state in states.items():
        arrays: dict[str, list[str]] = {}
        for record, held in state.array_records.items():
            found = from_record(held)
            arrays[record] = list(found)
            tensors.update({f"client/{client}/{record}/{n}": t for n, t in found.items()})
        metrics = {r: dict(m) for r, m in state.metric_records.items()}
        configs = {r: {k: _plain(v) for k, v in c.items()} for r, c in state.config_records.items()}
        told[str(client)] = {"arrays": arrays, "metrics": metrics, "configs": configs}
    return tensors, told


def unpack_clients(tensors: Mapping[str, Tensor], told: Mapping[str, Any]) -> dict[int, RecordDict]:
    """Return the clients' states; inverse of `pack_clients`. KeyError for what is not there."""
    states = {}
    for client, held in told.items():
        state = RecordDict()
        for record, names in held["arrays"].items():
            found = {n: tensors[f"client/{int(client)}/{record}/{n}"] for n in names}
            state.array_records[record] = to_record(found)
        for record, values in held["metrics"].items():
            state.metric_records[record] = MetricRecord(values)
        for record, values in held["configs"].items():
            state.config_records[record] = ConfigRecord({k: _unplain(v) for k, v in values.items()})
        states[int(client)] = state
    return states


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return {"bytes": value.hex()}
    return [_plain(v) for v in value] if isinstance(value, list) else value


def _unplain(value: Any) -> Any:
    if isinstance(value, dict):
        return bytes.fromhex(value["bytes"])
    return [_unplain(v) for v in value] if isinstance(value, list) else value


def pack_strategy(
    strategy: FlowerStrategy, start: Mapping[str, Any]
) -> tuple[dict[str, Tensor], dict[str, Any]]:
    """Return a strategy's attributes as named tensors and JSON values.

    Ours keep nothing; Flower's FedAdam and its like keep moments. `start` are the attributes before
    the first round: one of another kind than numbers, texts, arrays and lists or mappings of them
    must still be what it was. Raises InputError otherwise, as a resumed run would go on differently.
    """
    tensors: dict[str, Tensor] = {}
    told: dict[str, Any] = {}
    for name, value in vars(strategy).items():
        if name in OWN:
            continue
        try:
            told[name] = _pack(f"strategy/{name}", value, tensors)
        except TypeError as error:
            if name in start and start[name] is value:
                continue
            raise InputError(
                f"strategy: {type(strategy).__name__} keeps {name!r} of type "
                f"{type(value).__name__}, which a checkpoint cannot hold; keep numbers, texts and "
                "arrays, or put tensors into the state (docs/extending.md)"
            ) from error
    return tensors, told


def unpack_strategy(
    strategy: FlowerStrategy, tensors: Mapping[str, Tensor], told: Mapping[str, Any]
) -> None:
    """Give a fresh strategy its attributes back; KeyError for one that it does not have."""
    for name, value in told.items():
        if name not in vars(strategy) or name in OWN:
            raise KeyError(f"{type(strategy).__name__} has no attribute {name!r}")
        setattr(strategy, name, _unpack(value, tensors))


def _pack(key: str, value: Any, tensors: dict[str, Tensor]) -> Any:
    if value is None or isinstance(value, (bool, int, float, str)):
        return {"value": value}
    if isinstance(value, np.ndarray):
        tensors[key] = torch.from_numpy(value.copy())
        return {"array": key}
    if isinstance(value, Tensor):
        tensors[key] = value
        return {"tensor": key}
    if isinstance(value, ArrayRecord):
        return {"record": {n: _pack(f"{key}/{n}", a.numpy(), tensors) for n, a in value.items()}}
    if isinstance(value, (list, tuple)):
        members = [_pack(f"{key}/{i}", v, tensors) for i, v in enumerate(value)]
        return {"tuple" if isinstance(value, tuple) else "list": members}
    if isinstance(value, dict) and all(isinstance(k, str) for k in value):
        return {"dict": {k: _pack(f"{key}/{k}", v, tensors) for k, v in value.items()}}
    raise TypeError(key)


def _unpack(told: Mapping[str, Any], tensors: Mapping[str, Tensor]) -> Any:
    ((kind, value),) = told.items()
    if kind == "value":
        return value
    if kind == "array":
        return tensors[value].numpy().copy()
    if kind == "tensor":
        return tensors[value]
    if kind == "record":
        return ArrayRecord({n: Array(_unpack(v, tensors)) for n, v in value.items()})
    if kind in ("list", "tuple"):
        members = [_unpack(v, tensors) for v in value]
        return tuple(members) if kind == "tuple" else members
    return {k: _unpack(v, tensors) for k, v in value.items()}
