"""Which reader a file's name asks for."""

from pathlib import Path

from fedsvd.data.columnar import read_arrow, read_parquet
from fedsvd.data.files import read_text
from fedsvd.data.source import Source
from fedsvd.errors import InputError

TEXT = (".csv", ".tsv", ".jsonl", ".ndjson", ".json")  # also with .gz after it
BINARY = {".parquet": read_parquet, ".arrow": read_arrow}
KNOWN = f"{', '.join(TEXT)} (each also with .gz), {', '.join(BINARY)}"


def format_of(path: Path) -> tuple[str, str] | None:
    """Return a file's name without endings, and its format's suffix; None for no known format."""
    name, lower = path.name, path.name.casefold()
    packed = lower.endswith(".gz")
    if packed:
        name, lower = name[:-3], lower[:-3]
    suffix = next((s for s in (*TEXT, *BINARY) if lower.endswith(s)), None)
    if suffix is None or (packed and suffix in BINARY) or len(name) == len(suffix):
        return None
    return name[: -len(suffix)], suffix


def open_source(path: Path) -> Source:
    """Return the columns and rows of a file; InputError that names it if it cannot be read."""
    found = format_of(path)
    if found is None:
        raise InputError(f"{path}: is no file of a known format; it must be one of {KNOWN}")
    _, suffix = found
    return BINARY[suffix](path) if suffix in BINARY else read_text(path, suffix)
