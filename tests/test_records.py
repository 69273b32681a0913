import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedsvd.records import decode, encode, finite, from_record, record_bytes, to_record


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


def test_tensors_alike_travel_as_one_array():
    tensors = {
        f"{k}.{f}": torch.randn(*shape) for k in "qv" for f, shape in (("A", (2, 5)), ("B", (4, 2)))
    }
    tensors["head.weight"] = torch.randn(3, 4)
    record = to_record(tensors)
    assert {name: array.shape for name, array in record.items()} == {
        "q.A,v.A": (2, 2, 5), "q.B,v.B": (2, 4, 2), "head.weight": (3, 4),
    }  # fmt: skip
    back = from_record(record)
    assert set(back) == set(tensors)
    assert all(torch.equal(back[name], value) for name, value in tensors.items())


def test_tensors_that_share_a_shape_but_not_a_dtype_stay_apart():
    tensors = {"a": torch.ones(2), "b": torch.ones(2, dtype=torch.float64)}
    back = from_record(to_record(tensors))
    assert {n: t.dtype for n, t in back.items()} == {n: t.dtype for n, t in tensors.items()}


@pytest.mark.parametrize("dtype", ["float16", "float32", "float64"])
def test_finite_says_what_numpy_says_of_every_value(dtype):
    large = np.full((3, 4), np.finfo(dtype).max, dtype)  # whose squares overflow
    assert finite(large)
    assert finite(np.zeros((0, 3), dtype))
    for bad in (np.nan, np.inf, -np.inf):
        for value in (large.copy(), np.ones((3, 4), dtype)):
            value[1, 2] = bad
            value.setflags(write=False)
            assert not finite(value)
