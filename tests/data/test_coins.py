"""Coins of rows: uniform, independent over keys, a function of the row's own text."""

import hashlib

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from scipy import stats

from fedsvd.data.coins import coins, taken
from fedsvd.randomness import Purpose

TEXTS = [(f"text {i}",) for i in range(20_000)]


def test_they_are_uniform_and_independent_over_keys_and_seeds():
    found = [
        coins(TEXTS, seed, purpose, *keys)
        for seed, purpose, keys in [
            (0, Purpose.SPLIT, ()), (1, Purpose.SPLIT, ()), (0, Purpose.PARTITION, ()),
            (0, Purpose.SPLIT, ("limit",)), (0, Purpose.SPLIT, (0,)), (0, Purpose.SPLIT, ("0",)),
        ]
    ]  # fmt: skip
    for values in found:
        assert stats.kstest(values, "uniform").pvalue > 1e-4
        assert values.min() >= 0
        assert values.max() < 1
    correlations = np.corrcoef(found)[np.triu_indices(len(found), 1)]
    assert np.abs(correlations).max() < 5 / len(TEXTS) ** 0.5


def test_they_are_the_keyed_hash_that_the_docstring_says():
    key = hashlib.sha256(b'7,"split","limit"').digest()[:16]
    text = ("a", "b é")
    data = b"".join(len(c.encode()).to_bytes(8, "big") + c.encode() for c in text)
    value = int.from_bytes(hashlib.blake2b(data, key=key, digest_size=8).digest(), "big")
    assert coins([text], 7, Purpose.SPLIT, "limit")[0] == (value >> 11) / 2**53


@given(st.lists(st.lists(st.text(max_size=4), min_size=1, max_size=2).map(tuple), max_size=20))
def test_equal_texts_have_equal_coins_and_others_other_ones(texts):
    values = coins(texts, 0, Purpose.SPLIT)
    for i, a in enumerate(texts):
        for j, b in enumerate(texts):
            assert (values[i] == values[j]) == (a == b)


@pytest.mark.parametrize("size", [None, 50, 20_000, 10**9])
def test_a_sample_has_about_its_size(size):
    values = coins(TEXTS, 0, Purpose.SPLIT)
    kept = taken(values, 500, size)
    if size is None:
        assert kept.sum() == 500
        assert values[kept].max() < values[~kept].min()
    else:
        expected = 20_000 * min(1, 500 / size)
        assert abs(kept.sum() - expected) <= 5 * expected**0.5
    assert taken(values, None, size).all()
    assert taken(values[:3], 500, None).all()
