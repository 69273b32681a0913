"""A folder with one file for each client."""

from dataclasses import dataclass
from pathlib import Path
from typing import final

from fedsvd.data.parts import Found, parts_beside
from fedsvd.errors import InputError
from fedsvd.settings import DataSettings


@final
@dataclass(frozen=True)
class ClientFiles:
    """The tables of a folder: of clients by their names, of the server's parts, lines to be told."""

    clients: tuple[Found, ...]
    parts: dict[str, Found]
    notes: tuple[str, ...]

    @property
    def part(self) -> str:
        """What clients' rows are: training alone, or "all", of which parts are drawn too."""
        return "train" if {"validation", "test"} & set(self.parts) else "all"


def client_files(folder: Path, settings: DataSettings) -> ClientFiles:
    """Return the files of a folder: each is a client's, but for validation, test and public.

    A client is called as its file is, without endings. Raises InputError for a folder that is none,
    holds no such file, two of one name, or a train part, which would be nobody's.
    """
    if not folder.is_dir():
        raise InputError(
            f"data.path: {str(folder)!r} is not allowed; with partition=files it must be a folder "
            "with one file for each client"
        )
    parts, others, notes = parts_beside(folder, settings)
    if "train" in parts:
        raise InputError(
            f"data.path: {str(folder)!r} holds {parts['train'].shown}; with partition=files every "
            "file is a client's, but for validation, test and public"
        )
    seen: dict[str, Found] = {}
    for table in others:
        if table.name in seen:
            raise InputError(
                f"data.path: {str(folder)!r} holds {seen[table.name].shown} and {table.shown}, both "
                f"of client {table.name!r}; leave one of them"
            )
        seen[table.name] = table
    if not seen:
        raise InputError(f"data.path: {str(folder)!r} holds no file of a client")
    return ClientFiles(tuple(seen[name] for name in sorted(seen)), parts, tuple(notes))
