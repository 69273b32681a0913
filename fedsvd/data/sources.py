"""Reading labelled texts from packages, files, folders and the Hugging Face hub."""

import importlib.util
from collections.abc import Hashable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

from fedsvd.data.clients import client_files
from fedsvd.data.columnar import is_saved, load_saved, read_dataset
from fedsvd.data.formats import open_source
from fedsvd.data.hub import hub_files, may_be_id, not_found
from fedsvd.data.kept import Kept, signature
from fedsvd.data.parts import parts_of_folder, parts_of_splits, readable
from fedsvd.data.prepared import hint
from fedsvd.data.rows import Table, read_table
from fedsvd.errors import InputError
from fedsvd.settings import DataSettings


@final
@dataclass(frozen=True)
class Tables:
    """The tables of a task by part, a phrase that says where they came from, and lines to be told.

    The parts are "all" for a source without a split, otherwise a subset of train, validation, test;
    and "public" if it holds texts that anybody may see.
    """

    parts: dict[str, Table]
    source: str
    notes: tuple[str, ...] = ()


_kept: Kept[Tables] = Kept()


def read_tables(settings: DataSettings, by_file: bool = False) -> Tables:
    """Return the tables of a task: `data.path` wins, then the installed package, then the hub.

    `by_file`: `data.path` is a folder with one file for each client. Files that a process has read
    before, with the same settings, are not read again unless their size or time of change is another
    one. Raises InputError.
    """
    if by_file:
        return _kept.get(_key(settings, by_file), lambda: _read_clients(settings))
    return _kept.get(_key(settings, by_file), lambda: _read(settings))


def files_now(settings: DataSettings) -> Hashable | None:
    """Return what tells one state of a task's local files from another; None for the hub's."""
    place = None
    if settings.path is not None:
        place = Path(settings.path).expanduser()
    elif settings.package is not None and settings.file is not None:
        place = package_file(settings.package, settings.file)
    return (signature(place) or None) if place is not None and place.exists() else None


def _key(settings: DataSettings, by_file: bool) -> Hashable | None:
    """Return what the tables of local files follow from; None for those of the hub."""
    found = files_now(settings)
    return None if found is None else (repr(settings), by_file, found)


def _read(settings: DataSettings) -> Tables:
    if settings.path is not None:
        path = Path(settings.path).expanduser()
        if path.is_dir():
            return _read_saved(path, settings) if is_saved(path) else _read_folder(path, settings)
        if path.exists():
            return _whole(path, settings, str(path))
        if not may_be_id(settings.path):
            raise InputError(f"data.path: {settings.path!r} does not exist{hint(settings.path)}")
        return _read_hub(settings.path, settings)
    if settings.package is not None and settings.file is not None:
        packaged = package_file(settings.package, settings.file)
        if packaged is not None:
            return _whole(packaged, settings, f"package: {settings.package}")
    if settings.hub is not None:
        return _read_hub(settings.hub, settings)
    raise InputError("data: set data.path to a folder, a file, or a hub id")


def package_file(package: str, file: str) -> Path | None:
    """Return the path of a file or folder inside an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / file
    return path if path.exists() else None


def _whole(path: Path, settings: DataSettings, source: str) -> Tables:
    return Tables({"all": read_table([open_source(path)], settings, declares=False)}, source)


def _read_folder(folder: Path, settings: DataSettings) -> Tables:
    """Read train/validation/test files of a folder, or the one file that it holds; and public."""
    found, notes = parts_of_folder(folder, settings)
    tables = {
        part: read_table(map(open_source, table.files), settings, declares=False)
        for part, table in found.items()
    }
    return Tables(tables, str(folder), tuple(notes))


def _read_clients(settings: DataSettings) -> Tables:
    """Read a folder of clients' files, and of the server's where it has some."""
    if settings.path is None:
        raise InputError("data.path: missing; partition=files needs a folder of clients' files")
    folder = Path(settings.path).expanduser()
    found = client_files(folder, settings)
    tables = {
        part: read_table(map(open_source, table.files), settings, declares=False)
        for part, table in found.parts.items()
    }
    files = [(client.name, file) for client in found.clients for file in client.files]
    tables[found.part] = read_table(
        (open_source(file) for _, file in files), settings, declares=False,
        holders=[name for name, _ in files],
    )  # fmt: skip
    return Tables(tables, str(folder), found.notes)


def _read_saved(folder: Path, settings: DataSettings) -> Tables:
    """Read a folder of `save_to_disk`."""
    found = load_saved(folder)
    beside = [t.shown for t in readable(sorted(folder.iterdir())) if t.suffix != ".arrow"]
    notes = (f"{folder}: {', '.join(beside)} are not read",) if beside else ()
    if "all" in found:
        return Tables(
            {"all": read_table([read_dataset(str(folder), found["all"])], settings, declares=False)},
            str(folder), notes,
        )  # fmt: skip
    read = read_splits(found, str(folder), settings, declares=False)
    return Tables(read.parts, read.source, read.notes + notes)


def _read_hub(name: str, settings: DataSettings) -> Tables:
    """Read a dataset of the Hugging Face hub by id."""
    import datasets

    with hub_files() as why:
        try:
            loaded = datasets.load_dataset(name, settings.hub_config)
        except Exception as error:  # the hub client raises a dozen unrelated types
            here = "" if settings.path is None else "there is no such file or folder here; "
            reason = _line(error)
            if isinstance(error, OSError):
                reason = f"{here}{not_found(why, reason)}"
            key = "data.hub" if settings.path is None else "data.path"
            raise InputError(f"{key}: {name!r} cannot be loaded: {reason}") from error
    return read_splits(loaded, f"hub: {name}", settings, declares=True)


def read_splits(
    splits: Mapping[str, Any], place: str, settings: DataSettings, declares: bool
) -> Tables:
    """Return the tables of a `datasets.DatasetDict`; `declares`: its schema is published."""
    wanted, notes = parts_of_splits(splits, place, settings)
    tables = {
        ours: read_table(
            [read_dataset(f"{place}: {theirs}", splits[theirs])], settings, declares=declares
        )
        for ours, theirs in wanted.items()
    }
    return Tables(tables, place, tuple(notes))


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
