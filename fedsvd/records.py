"""Between tensors and Flower's records; the checks on what a client sends back."""

import functools
import io
import warnings
from collections.abc import Collection, Iterable, Mapping, Sequence
from typing import Any

import numpy as np
import torch
from flwr.app import Array, ArrayRecord, ConfigRecord, Message, MetricRecord
from torch import Tensor

ARRAYS, METRICS, CONFIG, REPORT = "arrays", "metrics", "config", "report"
WEIGHT = "num-examples"  # Flower's name for a reply's weight; see clients.weighting
LOSS = "train_loss"  # Flower's name for a client's mean loss at the state it was sent
SENDS_LOSS = "sends-loss"  # in a message: clients send it
ATTEMPT = "attempt"  # of a round that is repeated
BUDGET = "microbatch-tokens"  # in a message: what the server has chosen for `auto`
FAILED = "failed"  # why a client could not finish
CAUSE = "cause"  # of a failure of software: the exception's type and, with diagnostics, its place
TRAINS, KEEPS = "trains", "keeps"  # kinds that train in a round, and those that stay at clients
RANKS, RANKED = "ranks", "ranked"  # ranks that a strategy gives clients, and their ids
SEPARATOR = ","
STYPE = "numpy.ndarray"  # Flower's name for arrays in NumPy's file format


def to_record(tensors: Mapping[str, Tensor]) -> ArrayRecord:
    """Return float tensors of any device as Flower's record.

    Tensors of one shape and dtype travel as one array with a new first axis, its name their names
    joined by commas; a tensor without a like keeps its name and shape. An object of Flower's for
    each of a model's many factors would cost several times their bytes.
    """
    alike: dict[tuple[torch.Size, torch.dtype], list[str]] = {}
    for name, t in tensors.items():
        alike.setdefault((t.shape, t.dtype), []).append(name)
    packed = {}
    for names in alike.values():
        members = [tensors[name].detach() for name in names]
        if members[0].device.type != "cpu":  # one transfer for all
            members = list(torch.stack(members).cpu())
        values = [member.numpy() for member in members]
        shape = values[0].shape if len(values) == 1 else (len(values), *values[0].shape)
        packed[SEPARATOR.join(names)] = _encode(values, shape)
    return ArrayRecord(packed)


def from_record(
    record: Mapping[str, Array], device: torch.device | str = "cpu"
) -> dict[str, Tensor]:
    """Return a record's tensors by name on `device`; inverse of `to_record` but for their order.

    They are copies, which whoever asks may change.
    """
    found: dict[str, Tensor] = {}
    for key, array in record.items():
        found.update(_members(key, torch.from_numpy(decode(array).copy()).to(device)))
    return found


def views(record: Mapping[str, Array], device: torch.device | str = "cpu") -> dict[str, Tensor]:
    """Return what `from_record` does, without a copy where `device` is the processor.

    The tensors are the record's own bytes: for those who only read, as a strategy does.
    """
    found: dict[str, Tensor] = {}
    for key, array in record.items():
        found.update(_members(key, torch.from_numpy(decode(array)).to(device)))
    return found


def part_of(
    record: ArrayRecord, tensors: Mapping[str, Tensor], more: Mapping[str, Tensor]
) -> ArrayRecord:
    """Return what `to_record` makes of `tensors`, which a record holds, and of `more`.

    Arrays of which all is wanted are the record's own: their bytes are not written anew.
    """
    if not more:
        wanted = {key: [n in tensors for n in key.split(SEPARATOR)] for key in record}
        if all(all(found) or not any(found) for found in wanted.values()):
            return ArrayRecord({key: record[key] for key, found in wanted.items() if any(found)})
    return to_record({**tensors, **more})


with warnings.catch_warnings():  # torch warns of the first read-only array of a process
    warnings.simplefilter("ignore")
    torch.from_numpy(np.frombuffer(b"0", np.uint8))


def _members(key: str, value: Any) -> Iterable[tuple[str, Any]]:
    """Return (name, value) of each tensor in an array; ValueError if names and values differ."""
    names = key.split(SEPARATOR)
    if len(names) == 1:
        return [(key, value)]
    if isinstance(value, Tensor):
        value = value.unbind()  # iterating over a tensor takes several times as long
    return zip(names, value, strict=True)


def encode(value: np.ndarray) -> Array:
    """Return what Flower's Array(value) holds; the format's header is made once for a shape.

    Writing and parsing that header costs more than moving a factor's bytes.
    """
    return _encode([value], value.shape)


def _encode(members: Sequence[np.ndarray], shape: tuple[int, ...]) -> Array:
    """Return the array of a shape whose values are those of the members, one after the other."""
    dtype = members[0].dtype
    # One copy, of the bytes; an array of size 0 has no view of its bytes.
    values = [np.ascontiguousarray(m).data.cast("B") for m in members if m.size]
    data = b"".join((_header(dtype.str, shape), *values))
    return Array(dtype=str(dtype), shape=shape, stype=STYPE, data=data)


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


def in_round(
    config: Mapping[str, Any], factors: Iterable[str]
) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return which kinds of `factors` train in a round, and what of those and the head ("extra")
    stays at the client.

    `config` is that of the round's message. A strategy that says nothing, or nothing that this run
    trains (as training.factors can make it), has all of them train.
    """
    all_kinds = tuple(factors)
    told = config.get(TRAINS, all_kinds)
    trains = tuple(kind for kind in all_kinds if kind in told) or all_kinds
    return trains, tuple(kind for kind in (*trains, "extra") if kind in config.get(KEEPS, ()))


def travelling(kinds: Iterable[str], keeps: Iterable[str]) -> tuple[str, ...]:
    """Return which of these kinds, and of the head's "extra", do not stay at the clients."""
    kept = set(keeps)
    return tuple(kind for kind in (*kinds, "extra") if kind not in kept)


def rank_in_round(
    config: Mapping[str, Any], ranks: Sequence[int] | None, client: int
) -> int | None:
    """Return a client's rank: what the message says, or else its entry of `ranks`, or None."""
    told = dict(zip(config.get(RANKED, ()), config.get(RANKS, ()), strict=True))
    if client in told:
        return int(told[client])
    return None if ranks is None else ranks[client]


def report_of(message: Message) -> dict[str, Any]:
    """Return the client's report beside arrays and metrics: steps taken, diagnostics, a failure."""
    if message.has_error():
        return {}
    found: ConfigRecord | None = message.content.config_records.get(REPORT)
    return dict(found) if found else {}


def usable(message: Message) -> bool:
    """Return whether a training reply has arrays of finite values and a positive finite weight."""
    if message.has_error() or ARRAYS not in message.content.array_records:
        return False
    weight = message.content.metric_records.get(METRICS, MetricRecord()).get(WEIGHT)
    fine = isinstance(weight, (int, float)) and 0 < weight < float("inf")
    return fine and all(finite(decode(array)) for array in arrays_of(message).values())


def finite(value: np.ndarray) -> bool:
    """Return whether all values are finite numbers.

    A finite sum of squares says so, as squares cannot cancel; one that is not may have overflown, and
    the values are looked at one by one, which takes much longer.
    """
    flat = value.ravel()
    with np.errstate(all="ignore"):
        return bool(np.isfinite(np.dot(flat, flat))) or bool(np.isfinite(flat).all())


def fault(
    message: Message, sent: Mapping[str, Tensor], metrics: Collection[str] | None = None
) -> str | None:
    """Return why a training reply cannot be aggregated, or None if it can.

    It must carry exactly the tensors that were asked for (`sent` by name gives shape and dtype),
    finite, and a positive weight. Where `metrics` are given, exactly these must be beside, finite and
    not negative: rules of Flower's fall over one that is missing or too many.
    """
    if message.has_error():
        return f"failed: {message.error.reason or 'no reason given'}"
    if FAILED in report_of(message):
        return f"failed: {report_of(message)[FAILED]}"
    if ARRAYS not in message.content.array_records:
        return "sent no arrays"
    try:
        arrays = {key: decode(array) for key, array in arrays_of(message).items()}
        found = {n: v for key, array in arrays.items() for n, v in _members(key, array)}
    except Exception as error:  # whatever a client makes the readers stumble over
        return f"sent arrays that cannot be read ({type(error).__name__})"
    if set(found) != set(sent):
        odd = sorted(set(found) ^ set(sent))[0]
        return f"sent other tensors than asked for ({odd!r})"
    for name, value in found.items():
        expected = sent[name]
        if value.shape != tuple(expected.shape):
            return f"{name!r} has shape {value.shape}, not {tuple(expected.shape)}"
        if str(value.dtype) != str(expected.dtype).removeprefix("torch."):
            return f"{name!r} has dtype {value.dtype}"
    if not all(finite(array) for array in arrays.values()):  # many small looks would take longer
        name = next(name for name, value in found.items() if not finite(value))
        return f"{name!r} is not finite"
    if METRICS not in message.content.metric_records:
        return "sent no metrics"
    weight = metrics_of(message).get(WEIGHT)
    if not isinstance(weight, (int, float)) or not 0 < weight < float("inf"):
        return f"its weight is {weight!r}"
    return None if metrics is None else _odd(message, metrics)


def _odd(message: Message, metrics: Collection[str]) -> str | None:
    records, found = message.content.metric_records, metrics_of(message)
    if len(records) > 1 or len(message.content.array_records) > 1 or set(found) != set(metrics):
        return f"sent other metrics than {', '.join(sorted(metrics))}"
    for name, value in found.items():
        if not isinstance(value, (int, float)) or not 0 <= value < float("inf"):
            return f"its {name} is {value!r}"
    return None
