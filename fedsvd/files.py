"""Files that are there whole or not at all, whenever the process or the machine stops."""

import contextlib
import json
import os
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsvd.errors import StorageError

OPEN, CLOSED = 0o666, 0o600  # modes of files, less the process's mask: for all, for their owner


def write_bytes(path: Path, data: bytes, mode: int = OPEN) -> None:
    """Write a file aside, fsync it, move it into place, fsync its folder.

    A reader sees the old file or the new one. The file has its mode from its first byte on, also
    aside. Raises StorageError, and leaves the old one, if the disk is full or the folder cannot be
    written.
    """
    aside = path.with_name(path.name + ".tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        aside.unlink(missing_ok=True)  # what a killed process left would keep its mode
        with open(os.open(aside, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode), "wb") as file:
            file.write(data)
            file.flush()
            os.fsync(file.fileno())
        os.replace(aside, path)
        sync_folder(path.parent)
    except OSError as error:
        with contextlib.suppress(OSError):
            aside.unlink(missing_ok=True)
        raise unwritable(path, error) from error


def private_folder(folder: Path) -> None:
    """Make a folder that its owner alone can enter, or close the one that is there; StorageError."""
    try:
        folder.mkdir(mode=0o700, parents=True, exist_ok=True)
        folder.chmod(0o700)
    except OSError as error:
        raise unwritable(folder, error) from error


def sync_folder(folder: Path) -> None:
    """Make the names in a folder last."""
    descriptor = os.open(folder, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


def append_line(path: Path, line: str) -> None:
    """Append a line and fsync it; StorageError if that fails."""
    try:
        with path.open("ab") as file:
            file.write(line.encode() + b"\n")
            file.flush()
            os.fsync(file.fileno())
    except OSError as error:
        raise unwritable(path, error) from error


def link(source: Path, path: Path) -> None:
    """Let `path` name the same file as `source`, or a copy of it where there are no hard links."""
    aside = path.with_name(path.name + ".tmp")
    try:
        aside.unlink(missing_ok=True)
        os.link(source, aside)
        os.replace(aside, path)
        aside.unlink(missing_ok=True)  # a rename onto the same file does nothing
    except OSError:
        write_bytes(path, source.read_bytes(), source.stat().st_mode & 0o777)


def unwritable(path: Path, error: OSError) -> StorageError:
    """Return the error for a file that cannot be written."""
    return StorageError(f"{path}: cannot be written: {error.strerror or error}")


def write_text(path: Path, text: str) -> None:
    """Write UTF-8 text as `write_bytes` does."""
    write_bytes(path, text.encode())


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_bytes` does; NaN and infinities become null."""
    write_text(path, json.dumps(clean(value), indent=2) + "\n")


def clean(value: Any) -> Any:
    """Return `value` with NaN and infinities, which JSON lacks, as None."""
    if isinstance(value, float):  # most of what there is
        return value if abs(value) < float("inf") else None
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    return value
