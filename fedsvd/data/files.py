"""CSV and JSONL files, checked line by line while they are read."""

import csv
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from fedsvd.errors import InputError

LINE_LIMIT = 1 << 20  # bytes of a line, and characters of a field


def read_rows(path: Path) -> tuple[list[str], Iterator[tuple[int, dict[str, Any]]]]:
    """Return a file's columns, and its rows as (number of the line, values by column).

    The columns of a .jsonl file are those of its first object. Raises InputError that names file and
    line: not UTF-8, a NUL byte, a line above `LINE_LIMIT`, another number of fields than the header,
    an open quote, no JSON object, a repeated key or column, an empty file.
    """
    rows = _objects(path) if path.suffix == ".jsonl" else _records(path)
    try:
        columns = next(rows)[1]
    except StopIteration:
        raise InputError(f"{path}: is empty") from None
    return list(columns), rows


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text with its line ending) of a UTF-8 file, one line in memory."""
    try:
        with path.open("rb") as file:
            number = 0
            while raw := file.readline(LINE_LIMIT + 1):
                number += 1
                if len(raw) > LINE_LIMIT:
                    raise InputError(f"{path}: line {number} is longer than {LINE_LIMIT} bytes")
                if b"\0" in raw:
                    raise InputError(f"{path}: line {number} holds a NUL byte; is it a text file?")
                try:
                    text = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                except UnicodeDecodeError as error:
                    raise InputError(
                        f"{path}: line {number} is not UTF-8 (byte {raw[error.start]:#04x}); save "
                        "the file as UTF-8"
                    ) from error
                yield number, text
    except OSError as error:
        raise InputError(f"{path}: cannot be read: {error.strerror or error}") from error


def _records(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the header as a dict of its names, then every record of a CSV file; blank lines skip."""
    before = csv.field_size_limit(LINE_LIMIT)
    try:
        reader = csv.reader((text for _, text in _lines(path)), strict=True)
        header: list[str] | None = None
        for record in reader:
            if not record:
                continue
            if header is None:
                header = record
                double = next((c for c in header if header.count(c) > 1), None)
                if double is not None:
                    raise InputError(f"{path}: column {double!r} is there twice")
                yield reader.line_num, dict.fromkeys(header)
                continue
            if len(record) != len(header):
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(record)} fields, the header "
                    f"{len(header)}; texts with commas need quotes"
                )
            yield reader.line_num, dict(zip(header, record, strict=True))
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num}: {error}; is a quote left open?"
        ) from error
    finally:
        csv.field_size_limit(before)


def _objects(path: Path) -> Iterator[tuple[int, dict[str, Any]]]:
    """Yield the first object's keys, then every object of a JSONL file; blank lines skip."""

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        found = dict(pairs)
        if len(found) < len(pairs):
            raise ValueError("a key is there twice")
        return found

    first = True
    for number, text in _lines(path):
        if not text.strip():
            continue
        try:
            value = json.loads(text, object_pairs_hook=unique)
        except (ValueError, RecursionError) as error:
            reason = str(error) if isinstance(error, ValueError) else "too deeply nested"
            raise InputError(f"{path}: line {number} is not JSON: {reason[:120]}") from error
        if not isinstance(value, dict):
            raise InputError(f"{path}: line {number} is not a JSON object")
        if first:
            yield number, dict.fromkeys(value)
            first = False
        yield number, value
