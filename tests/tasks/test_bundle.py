"""TensorFlow's bundles, against ones written here from the format's description."""

from pathlib import Path

import numpy as np
import pyarrow
import pytest

from fedsvd.errors import InputError
from fedsvd.tasks.bundle import MAGIC, read_bundle


def varint(value: int) -> bytes:
    out = bytearray()
    while value >= 128:
        out.append(value & 127 | 128)
        value >>= 7
    return bytes([*out, value])


def field(number: int, value: int | bytes) -> bytes:
    if isinstance(value, int):
        return varint(number << 3) + varint(value)
    return varint(number << 3 | 2) + varint(len(value)) + value


def block(entries: dict[bytes, bytes], packs: bool) -> bytes:
    """Return a block with prefixes shared, one restart, and the byte and checksum after it."""
    out, last = b"", b""
    for key in sorted(entries):
        shared = 0
        while shared < min(len(key), len(last)) and key[shared] == last[shared]:
            shared += 1
        rest, value = key[shared:], entries[key]
        out += varint(shared) + varint(len(rest)) + varint(len(value)) + rest + value
        last = key
    out += (0).to_bytes(4, "little") + (1).to_bytes(4, "little")
    if packs:
        out = bytes(pyarrow.compress(out, codec="snappy", asbytes=True))
    return out + bytes([int(packs)]) + b"\0\0\0\0"


def bundle(folder: Path, tensors: dict[str, np.ndarray], packs: bool) -> tuple[Path, Path]:
    numbers, entries = b"", {b"": field(1, 1)}
    kinds = {"float32": 1, "int32": 3, "int64": 9, "float16": 19}
    for name, value in tensors.items():
        shape = b"".join(field(2, field(1, n)) for n in value.shape)
        entry = field(1, kinds[value.dtype.name]) + field(2, shape)
        entry += field(4, len(numbers)) if numbers else b""
        entries[name.encode()] = entry + field(5, value.nbytes) + b"\x35\1\2\3\4"
        numbers += value.tobytes()
    data = block(entries, packs)
    handle = varint(0) + varint(len(data) - 5)
    index = block({b"z": handle}, packs)
    places = varint(0) + varint(0) + varint(len(data)) + varint(len(index) - 5)
    whole = data + index + places.ljust(40, b"\0") + MAGIC.to_bytes(8, "little")
    (folder / "i").write_bytes(whole)
    (folder / "d").write_bytes(numbers)
    return folder / "i", folder / "d"


@pytest.mark.parametrize("packs", [False, True])
def test_tensors_come_back(tmp_path: Path, packs: bool) -> None:
    g = np.random.default_rng(0)
    tensors = {
        "bert/layer_0/kernel": g.standard_normal((3, 200)).astype("float32"),
        "bert/layer_0/bias": g.standard_normal(5).astype("float32"),
        "bert/step": np.asarray(7, dtype="int64"),
        "other": np.arange(4, dtype="int32").reshape(2, 2),
    }
    found = read_bundle(*bundle(tmp_path, tensors, packs))
    assert set(found) == set(tensors)
    for name, value in tensors.items():
        assert found[name].dtype == value.dtype
        np.testing.assert_array_equal(found[name], value)


def test_what_is_no_bundle_is_refused(tmp_path: Path) -> None:
    index, data = bundle(tmp_path, {"a": np.zeros(2, dtype="float16")}, False)
    with pytest.raises(InputError, match="type 19 is not read"):
        read_bundle(index, data)
    index.write_bytes(index.read_bytes()[:-1] + b"x")
    with pytest.raises(InputError, match="is no index of a TensorFlow checkpoint"):
        read_bundle(index, data)
