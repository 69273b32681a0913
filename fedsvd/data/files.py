"""CSV, TSV, JSONL and JSON files, plain or gzipped, checked line by line while they are read."""

import csv
import gzip
import json
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import IO, Any

from fedsvd.data.source import Rows, Source
from fedsvd.errors import InputError

LINE_LIMIT = 1 << 20  # bytes of a line, and characters of a field
DELIMITERS = {".csv": ",", ".tsv": "\t"}
# How files start that are no text, or none in UTF-8, and what to do about it.
STARTS = {
    b"\xff\xfe": "it starts as UTF-16 does; save it as UTF-8",
    b"\xfe\xff": "it starts as UTF-16 does; save it as UTF-8",
    b"\x1f\x8b": "it starts as gzip does; call it .gz",
    b"PK\x03\x04": "it starts as a ZIP archive or an Excel sheet does; save it as CSV",
    b"PAR1": "it starts as Parquet does; call it .parquet",
}


def read_text(path: Path, suffix: str) -> Source:
    """Return a text file's columns and rows; `suffix` is its format, without .gz at its end.

    The columns of .jsonl and .json files are those of the first object. Raises InputError that names
    file and line, here or while rows are read: not UTF-8, a NUL byte, a line above `LINE_LIMIT`,
    another number of fields than the header, an open quote, no JSON object, a repeated key or
    column, an empty file.
    """
    unit = "line"
    if suffix in DELIMITERS:
        rows = _records(path, DELIMITERS[suffix])
    elif suffix == ".json" and (values := _array(path)) is not None:
        rows, unit = _elements(path, values), "row"
    else:
        rows = _objects(path)
    try:
        columns = next(rows)[1]
    except StopIteration:
        raise InputError(f"{path}: is empty") from None
    return Source(str(path), tuple(columns), lambda _: rows, unit)


def _open(path: Path) -> IO[bytes]:
    packed = path.name.casefold().endswith(".gz")
    return gzip.open(path) if packed else path.open("rb")  # type: ignore[return-value]


def _unreadable(path: Path, error: Exception) -> InputError:
    reason = getattr(error, "strerror", None) or error
    return InputError(f"{path}: cannot be read: {reason}")


def _lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (number from 1, text with its line ending) of a UTF-8 file, one line in memory."""
    try:
        with _open(path) as file:
            number, start = 0, b""
            while raw := file.readline(LINE_LIMIT + 1):
                number += 1
                start = start or raw[:4]
                if len(raw) > LINE_LIMIT:
                    raise InputError(f"{path}: line {number} is longer than {LINE_LIMIT} bytes")
                if b"\0" in raw:
                    hint = _hint(start, raw) or "only text is read"
                    raise InputError(
                        f"{path}: line {number} holds a NUL byte; is it a text file? {hint}"
                    )
                yield number, _decoded(path, number, raw, start)
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error


def _decoded(path: Path, number: int, raw: bytes, start: bytes) -> str:
    try:
        return raw.decode("utf-8-sig" if number == 1 else "utf-8")
    except UnicodeDecodeError as error:
        hint = _hint(start, raw) or "save the file as UTF-8 (it may be Latin-1 or Windows-1252)"
        raise InputError(
            f"{path}: line {number} is not UTF-8 (byte {raw[error.start]:#04x}); {hint}"
        ) from error


def _hint(start: bytes, raw: bytes) -> str | None:
    """Return what a file's first bytes, or a line's NUL bytes, tell of its format."""
    found = next((hint for magic, hint in STARTS.items() if start.startswith(magic)), None)
    if found is None and raw.count(0) * 3 >= len(raw):
        return "it looks like UTF-16 or UTF-32; save it as UTF-8"
    return found


def _records(path: Path, delimiter: str) -> Rows:
    """Yield the header as a dict of its names, then every record; blank lines skip."""
    before = csv.field_size_limit(LINE_LIMIT)
    name = {",": "commas", "\t": "tabs"}[delimiter]
    try:
        reader = csv.reader((text for _, text in _lines(path)), strict=True, delimiter=delimiter)
        header: list[str] | None = None
        for record in reader:
            if not record:
                continue
            if header is None:
                header = record
                check_columns(str(path), header)
                yield reader.line_num, dict.fromkeys(header)
                continue
            if len(record) != len(header):
                raise InputError(
                    f"{path}: line {reader.line_num} has {len(record)} fields, the header "
                    f"{len(header)}; texts with {name} need quotes"
                )
            yield reader.line_num, dict(zip(header, record, strict=True))
    except csv.Error as error:
        raise InputError(
            f"{path}: line {reader.line_num}: {error}; is a quote left open?"
        ) from error
    finally:
        csv.field_size_limit(before)


def check_columns(place: str, columns: list[str]) -> None:
    """Raise InputError if two columns have one name."""
    double = next((c for c in columns if columns.count(c) > 1), None)
    if double is not None:
        raise InputError(f"{place}: column {double!r} is there twice")


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) < len(pairs):
        raise ValueError("a key is there twice")
    return found


def _parsed(text: str, where: str) -> Any:
    try:
        return json.loads(text, object_pairs_hook=_unique)
    except (ValueError, RecursionError) as error:
        reason = str(error) if isinstance(error, ValueError) else "too deeply nested"
        raise InputError(f"{where} is not JSON: {reason[:120]}") from error


def _objects(path: Path) -> Rows:
    """Yield the first object's keys, then every object of a JSONL file; blank lines skip."""
    first = True
    for number, text in _lines(path):
        if not text.strip():
            continue
        value = _parsed(text, f"{path}: line {number}")
        if not isinstance(value, dict):
            raise InputError(f"{path}: line {number} is not a JSON object")
        if first:
            yield number, dict.fromkeys(value)
            first = False
        yield number, value


def _array(path: Path) -> list[Any] | None:
    """Return the elements of a file that holds one JSON array; None if it does not start as one."""
    try:
        with _open(path) as file:
            start = file.read(1024).removeprefix(b"\xef\xbb\xbf").lstrip()
            if not start.startswith(b"["):
                return None
            file.seek(0)
            data = file.read()
    except (OSError, EOFError, zlib.error) as error:
        raise _unreadable(path, error) from error
    try:
        text = data.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        line = data.count(b"\n", 0, error.start) + 1
        byte = f"{data[error.start]:#04x}"
        raise InputError(
            f"{path}: line {line} is not UTF-8 (byte {byte}); save the file as UTF-8"
        ) from error
    found = _parsed(text, str(path))
    assert isinstance(found, list)
    return found


def _elements(path: Path, values: list[Any]) -> Rows:
    for number, value in enumerate(values, 1):
        if not isinstance(value, dict):
            raise InputError(f"{path}: row {number} is not a JSON object")
        if number == 1:
            yield number, dict.fromkeys(value)
        yield number, value
