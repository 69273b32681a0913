"""Between tensors and Flower's records; the checks on what a client sends back."""

import functools
import io
from collections.abc import Mapping
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from torch import Tensor

ARRAYS, METRICS, CONFIG, REPORT = "arrays", "metrics", "config", "report"
WEIGHT = "num-examples"  # Flower's name for a reply's weight; see clients.weighting


STYPE = "numpy.ndarray"  # Flower's name for arrays in NumPy's file format


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return float tensors of any device as Flower's record; names and order stay."""
    return ArrayRecord(
        {name: encode(t.detach().cpu().contiguous().numpy()) for name, t in tensors.items()}
    )


def from_record(
    record: Mapping[str, Array], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return a record's arrays as tensors on `device`."""
    # A copy: arrays decoded from bytes are read-only, and torch warns about those.
    return {name: torch.from_numpy(decode(a).copy()).to(device) for name, a in record.items()}


def encode(value: np.ndarray) -> Array:
    """Return what Flower's Array(value) holds; the format's header is made once for a shape.

    Writing and parsing that header costs more than moving a factor's bytes.
    """
    data = _header(value.dtype.str, value.shape) + value.tobytes()
    return Array(dtype=str(value.dtype), shape=value.shape, stype=STYPE, data=data)


def decode(array: Array) -> np.ndarray:
    """Return an array's read-only values, as Flower's `Array.numpy` reads them."""
    data = array.data
    if array.stype != STYPE or data[:8] != b"\x93NUMPY\x01\x00":
        return array.numpy()
    start = 10 + int.from_bytes(data[8:10], "little")
    shape, fortran, dtype = _parsed(data[8:start])
    if fortran:
        return array.numpy()
    return np.frombuffer(data, dtype, offset=start).reshape(shape)


@functools.lru_cache(maxsize=4096)
def _header(dtype: str, shape: tuple[int, ...]) -> bytes:
    buffer = io.BytesIO()
    description = {"descr": dtype, "fortran_order": False, "shape": shape}
    np.lib.format.write_array_header_1_0(buffer, description)
    return buffer.getvalue()


@functools.lru_cache(maxsize=4096)
def _parsed(header: bytes) -> tuple[tuple[int, ...], bool, np.dtype]:
    return np.lib.format.read_array_header_1_0(io.BytesIO(header))


def record_bytes(record: Mapping[str, Array]) -> int:
    """Return the bytes of the arrays as they travel."""
    return sum(len(array.data) for array in record.values())


def arrays_of(message: Message) -> ArrayRecord:
    """Return the one array record of a message; KeyError if there is none."""
    return message.content.array_records[ARRAYS]


def metrics_of(message: Message) -> MetricRecord:
    """Return the one metric record of a message."""
    return message.content.metric_records[METRICS]


def report_of(message: Message) -> dict[str, Any]:
    """Return the client's report beside arrays and metrics (steps taken, diagnostics)."""
    found: ConfigRecord | None = message.content.config_records.get(REPORT)
    return dict(found) if found else {}


def fault(message: Message, sent: Mapping[str, Tensor]) -> str | None:
    """Return why a training reply cannot be aggregated, or None if it can.

    It must carry exactly the tensors that were asked for (`sent` by name gives shape and dtype),
    finite, and a positive weight.
    """
    if message.has_error():
        return f"failed: {message.error.reason or 'no reason given'}"
    if ARRAYS not in message.content.array_records:
        return "sent no arrays"
    record = arrays_of(message)
    if set(record) != set(sent):
        odd = sorted(set(record) ^ set(sent))[0]
        return f"sent other tensors than asked for ({odd!r})"
    for name, array in record.items():
        value, expected = decode(array), sent[name]
        if value.shape != tuple(expected.shape):
            return f"{name!r} has shape {value.shape}, not {tuple(expected.shape)}"
        if value.dtype != expected.detach().cpu().numpy().dtype:
            return f"{name!r} has dtype {value.dtype}"
        if not np.isfinite(value).all():
            return f"{name!r} is not finite"
    weight = metrics_of(message).get(WEIGHT)
    if not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        return f"its weight is {weight!r}"
    return None
