import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedsvd.records import decode, encode, from_record, record_bytes, to_record


@pytest.mark.parametrize("dtype", [np.float32, np.float64, np.int64])
@pytest.mark.parametrize("shape", [(), (3,), (2, 5), (0, 4)])
def test_bytes_are_flowers_own_both_ways(dtype, shape):
    value = np.arange(np.prod(shape, dtype=int)).reshape(shape).astype(dtype)
    theirs = Array(value)
    ours = encode(value)
    assert (ours.data, ours.shape, ours.dtype, ours.stype) == (
        theirs.data, theirs.shape, theirs.dtype, theirs.stype,
    )  # fmt: skip
    np.testing.assert_array_equal(decode(theirs), value)
    np.testing.assert_array_equal(ours.numpy(), value)


def test_other_layouts_are_left_to_flower():
    value = np.asfortranarray(np.arange(6.0).reshape(2, 3))
    np.testing.assert_array_equal(decode(Array(value)), value)


def test_tensors_round_trip_and_are_writable():
    tensors = {"b": torch.randn(4, 2), "a": torch.randn(3)}
    record = to_record(tensors)
    assert isinstance(record, ArrayRecord)
    back = from_record(record)
    assert list(back) == ["b", "a"]
    for name, value in tensors.items():
        assert torch.equal(back[name], value)
        back[name].add_(1)
        assert torch.equal(from_record(record)[name], value)
    assert record_bytes(record) >= 4 * 11
