"""Reading TensorFlow's checkpoints ("tensor bundles") without TensorFlow.

A bundle is an index and a file of raw numbers. The index is a table of LevelDB's: sorted keys in
blocks, each followed by a byte that says how it is packed and by a checksum. It has a
BundleEntryProto for each tensor: type (field 1), shape (2), offset (4) and size (5) of its numbers.
Sources: tensorflow/core/protobuf/tensor_bundle.proto; LevelDB's doc/table_format.md.
"""

from collections.abc import Iterator
from pathlib import Path

import numpy as np

from fedsvd.errors import InputError

MAGIC = 0xDB4775248B80FB57
FOOTER = 48
TYPES = {1: "<f4", 3: "<i4", 9: "<i8"}  # of DataType: float, int32, int64


def read_bundle(index: Path, data: Path) -> dict[str, np.ndarray]:
    """Return the tensors of a bundle in one part, by name; InputError if it is no such file."""
    raw, numbers = index.read_bytes(), data.read_bytes()
    if len(raw) < FOOTER or int.from_bytes(raw[-8:], "little") != MAGIC:
        raise InputError(f"{index}: is no index of a TensorFlow checkpoint")
    at = 0
    for _ in range(2):  # of the block of metadata, which is not needed
        _, at = _varint(raw[-FOOTER:], at)
    offset, at = _varint(raw[-FOOTER:], at)
    size, _ = _varint(raw[-FOOTER:], at)
    found = {}
    for _, handle in _entries(_block(raw, offset, size)):
        start, place = _varint(handle, 0)
        length, _ = _varint(handle, place)
        for key, value in _entries(_block(raw, start, length)):
            if key:  # the empty key is the bundle's header
                found[key.decode()] = _tensor(value, numbers)
    return found


def _tensor(entry: bytes, numbers: bytes) -> np.ndarray:
    whole, parts = _fields(entry)
    dims = [_fields(dim)[0].get(1, 0) for dim in _repeated(parts.get(2, b""), 2)]
    kind, start = whole.get(1, 0), whole.get(4, 0)
    if kind not in TYPES:
        raise InputError(f"a tensor of TensorFlow's type {kind} is not read")
    part = numbers[start : start + whole[5]]
    return np.frombuffer(part, dtype=TYPES[kind]).reshape(dims)


def _block(raw: bytes, offset: int, size: int) -> bytes:
    """Return a block, unpacked if the byte after it says that Snappy packed it."""
    block = raw[offset : offset + size]
    if raw[offset + size] == 0:
        return block
    import pyarrow

    length, _ = _varint(block, 0)
    return bytes(pyarrow.decompress(block, decompressed_size=length, codec="snappy"))


def _entries(block: bytes) -> Iterator[tuple[bytes, bytes]]:
    """Yield (key, value) of a block; a key says how much it shares with the one before."""
    restarts = int.from_bytes(block[-4:], "little")
    end, at, key = len(block) - 4 - 4 * restarts, 0, b""
    while at < end:
        shared, at = _varint(block, at)
        fresh, at = _varint(block, at)
        size, at = _varint(block, at)
        key = key[:shared] + block[at : at + fresh]
        yield key, block[at + fresh : at + fresh + size]
        at += fresh + size


def _fields(message: bytes) -> tuple[dict[int, int], dict[int, bytes]]:
    """Return the fields of a protocol buffer by number: whole numbers, and all others as bytes."""
    whole: dict[int, int] = {}
    parts: dict[int, bytes] = {}
    for number, value in _each(message):
        if isinstance(value, int):
            whole[number] = value
        else:
            parts[number] = value
    return whole, parts


def _repeated(message: bytes, wanted: int) -> list[bytes]:
    """Return every occurrence of a field of a protocol buffer that is a message itself."""
    return [v for number, v in _each(message) if number == wanted and isinstance(v, bytes)]


def _each(message: bytes) -> Iterator[tuple[int, int | bytes]]:
    """Yield (number, value) of the fields of a protocol buffer."""
    at = 0
    while at < len(message):
        tag, at = _varint(message, at)
        kind = tag & 7
        if kind == 0:
            value, at = _varint(message, at)
            yield tag >> 3, value
        else:
            size, at = _varint(message, at) if kind == 2 else ({1: 8, 5: 4}[kind], at)
            yield tag >> 3, message[at : at + size]
            at += size


def _varint(raw: bytes, at: int) -> tuple[int, int]:
    """Return a number of 7 bits a byte, and where the next thing starts."""
    value = shift = 0
    while True:
        byte = raw[at]
        value |= (byte & 127) << shift
        at, shift = at + 1, shift + 7
        if byte < 128:
            return value, at
