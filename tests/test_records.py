import subprocess
import sys

import numpy as np
import pytest
import torch
from flwr.app import Array, ArrayRecord

from fedsvd.records import (
    decode,
    encode,
    finite,
    from_record,
    part_of,
    record_bytes,
    to_record,
    views,
)


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


def some_tensors():
    named = {f"l{i}.{k}": torch.randn(2, 3) for i in range(3) for k in "AB"}
    return {**named, "head": torch.randn(4), "l0.W": torch.zeros(0, 3)}


def test_views_are_the_same_tensors_in_the_bytes_of_the_record():
    record = to_record(some_tensors())
    copies, seen = from_record(record), views(record)
    assert list(seen) == list(copies)
    for name, value in copies.items():
        assert torch.equal(seen[name], value)
        assert seen[name].dtype == value.dtype
        of = next(array for key, array in record.items() if name in key.split(","))
        begin = np.frombuffer(of.data, np.uint8).ctypes.data
        if value.numel():
            assert begin < seen[name].data_ptr() < begin + len(of.data)
            assert not begin <= value.data_ptr() < begin + len(of.data)


def test_views_warn_of_nothing():
    code = (
        "import warnings, torch; from fedsvd.records import to_record, views; "
        "warnings.simplefilter('error'); views(to_record({'a': torch.ones(2)}))"
    )
    subprocess.run([sys.executable, "-c", code], check=True)  # torch warns once a process


@pytest.mark.parametrize("wanted", ["A", "B", "AB", "ABW", "head", ""])
def test_part_of_a_record_is_what_would_be_written_anew(wanted):
    tensors = some_tensors()
    record = to_record(tensors)
    held = views(record)
    chosen = {n: t for n, t in held.items() if n in wanted or (n[-1] in wanted and "." in n)}
    for more in ({}, {"memory.m": torch.ones(2, 3)}):
        found, expected = part_of(record, chosen, more), to_record({**chosen, **more})
        assert {k: a.data for k, a in found.items()} == {k: a.data for k, a in expected.items()}
    whole = part_of(record, held, {})
    assert all(whole[key].data is array.data for key, array in record.items())


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
