"""What is given to a classifier to predict, as rows of one or two texts."""

from collections.abc import Iterable, Mapping, Set
from typing import Any

from fedsvd.errors import InputError


def rows_of(texts: Any, columns: int | None) -> list[tuple[str, ...]]:
    """Return texts as tuples of `columns` strings, 1 or 2; None takes either.

    A string is one text, and a tuple of two strings is one pair where pairs are expected. Otherwise
    `texts` is a list, an array or another iterable of texts or of pairs. Raises InputError that
    names the number of the first text (from 1) that cannot be used.
    """
    if isinstance(texts, str) or (columns == 2 and _is_pair(texts)):
        texts = [texts]
    unordered = isinstance(texts, (bytes, bytearray, Mapping, Set))
    if unordered or not isinstance(texts, Iterable):
        raise InputError(
            f"texts: {type(texts).__name__} is not allowed; it must be a text, or a list of texts"
            f"{' in pairs' if columns == 2 else ''}"
        )
    found = [_row(i, text, columns) for i, text in enumerate(texts, start=1)]
    if len({len(row) for row in found}) > 1:
        raise InputError("texts: must be single texts or pairs, not both")
    return found


def _is_pair(text: object) -> bool:
    return isinstance(text, tuple) and len(text) == 2 and all(isinstance(t, str) for t in text)


def _row(number: int, text: object, columns: int | None) -> tuple[str, ...]:
    row = (text,) if isinstance(text, str) else text
    if not isinstance(row, (tuple, list)) or not all(isinstance(t, str) for t in row):
        raise InputError(f"texts: number {number} is no text but of type {type(text).__name__}")
    if columns is None and len(row) in (1, 2):
        columns = len(row)
    if len(row) != columns:
        wanted = "a pair of texts" if columns == 2 else "a single text"
        raise InputError(f"texts: number {number} has {len(row)} parts; this model takes {wanted}")
    if not all(t.strip() for t in row):
        raise InputError(f"texts: number {number} is empty")
    return tuple(str(t) for t in row)
