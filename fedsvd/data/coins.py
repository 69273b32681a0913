"""Coins of rows: what becomes of a row follows from its own text and the seed, from no other row.

A shuffled deck is not like that: one row more and every later draw is another one. With coins, a row
that is added to the data, or taken away, leaves every other row where it was.
"""

import hashlib
from collections.abc import Sequence

import numpy as np

from fedsvd.randomness import Purpose, stream_key


def coins(
    texts: Sequence[tuple[str, ...]], seed: int, purpose: Purpose, *keys: int | str
) -> np.ndarray:
    """Return a number (n,) float64 in [0, 1) for each text: its keyed hash, 53 bits of BLAKE2b.

    The key is the stream (seed, purpose, *keys); equal texts have equal numbers. Over different texts
    or keys they are as good as independent and uniform.
    """
    key = stream_key(seed, purpose, *keys).to_bytes(16, "big")
    start = hashlib.blake2b(key=key, digest_size=8)
    found = np.empty(len(texts), dtype=np.uint64)
    for i, text in enumerate(texts):
        coin = start.copy()
        for column in text:
            data = column.encode("utf-8", "surrogatepass")
            coin.update(len(data).to_bytes(8, "big") + data)
        found[i] = int.from_bytes(coin.digest(), "big")
    return (found >> np.uint64(11)).astype(np.float64) * 2.0**-53


def taken(values: np.ndarray, number: int | None, of: float | None) -> np.ndarray:
    """Return which rows (n,) bool are kept of a sample of about `number` rows, by their coins.

    With the public size `of` these are the rows below number / of, each by itself; how many are kept
    is then random. Without it they are the `number` smallest, so that a row that comes in can push
    one out: two rows change. `number` None keeps all.
    """
    if number is None:
        return np.ones(len(values), dtype=bool)
    if of is not None:
        return values < number / of
    kept = np.zeros(len(values), dtype=bool)
    kept[np.argsort(values, kind="stable")[:number]] = True
    return kept
