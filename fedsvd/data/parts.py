"""Which files of a folder, or splits of a data set, are which part; none is dropped in silence."""

import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import final

from fedsvd.data.formats import KNOWN, format_of
from fedsvd.errors import InputError
from fedsvd.settings import DataSettings

PARTS = ("train", "validation", "test")
ALIASES = {p: p for p in (*PARTS, "public")} | dict.fromkeys(("dev", "val", "valid"), "validation")
SHARD = re.compile(r"(.+)-(\d+)-of-(\d+)")  # as the hub names them: train-00000-of-00002
# Data in formats that are not read; a part in one of them would be missed without a word.
UNREAD = (
    ".txt", ".xlsx", ".xls", ".ods", ".pkl", ".pickle", ".npy", ".npz", ".zip", ".bz2", ".xz", ".zst",
    ".gz", ".7z", ".tar", ".tgz", ".h5", ".hdf5", ".sqlite", ".db", ".feather", ".orc", ".avro",
    ".xml", ".yaml", ".yml", ".data", ".dat", ".tab", ".psv", ".libsvm",
)  # fmt: skip
# What datasets and its hub write beside the data.
METADATA = ("dataset_info.json", "dataset_infos.json", "dataset_dict.json", "state.json")


@final
@dataclass(frozen=True)
class Found:
    """One table of a folder: its name, and the file, or the shards in order, that hold it."""

    name: str
    suffix: str
    files: tuple[Path, ...]

    @property
    def shown(self) -> str:
        """The name for messages: of the file, or of the first shard."""
        more = f" (of {len(self.files)})" if len(self.files) > 1 else ""
        return self.files[0].name + more


def parts_of_folder(folder: Path, settings: DataSettings) -> tuple[dict[str, Found], list[str]]:
    """Return the tables of a folder by part, "all" for one that is not split, and lines to be told.

    train, validation (or dev, val, valid), test and public are parts, as are the names in
    `data.splits`. Raises InputError for two files of one part, a part in a format that is not read,
    shards that are missing, files without a train part among them, a folder without data.
    """
    named, others, notes = parts_beside(folder, settings)
    public = {part: t for part, t in named.items() if part == "public"}
    if "train" in named or (len(named) > len(public) and not others):
        if others:
            notes.append(f"{folder}: {_list(others)} are no parts and are not read")
        return {p: named[p] for p in (*PARTS, "public") if p in named}, notes
    rows = [t for t in others if t.suffix != ".json"] if len(others) > 1 else others
    if len(rows) == 1 and len(named) == len(public):
        aside = [t for t in others if t is not rows[0]]
        if aside:
            notes.append(f"{folder}: {rows[0].shown} is read, {_list(aside)} not")
        return {"all": rows[0], **public}, notes
    raise InputError(
        f"data.path: {str(folder)!r} must hold train.csv (or .jsonl), or a single file; it holds "
        f"{_list(sorted([*named.values(), *others], key=lambda t: t.files[0]))}"
    )


def parts_beside(
    folder: Path, settings: DataSettings
) -> tuple[dict[str, Found], list[Found], list[str]]:
    """Return a folder's tables by the part that they are called as, all others, lines to be told.

    Raises InputError for two files of one part, a part in a format that is not read, shards that are
    missing, a folder without data.
    """
    try:
        entries = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        raise InputError(f"data.path: {str(folder)!r} cannot be read: {error.strerror}") from error
    tables = readable(entries)
    if not tables:
        raise InputError(
            f"data.path: {str(folder)!r} holds no .csv or .jsonl file, {_no_data(entries)}"
        )
    named, notes = _by_part(folder, tables, settings)
    _check_unread(entries, named)
    parts = {id(t) for t in named.values()}
    return named, [t for t in tables if id(t) not in parts], notes


def readable(entries: Iterable[Path]) -> list[Found]:
    """Return the tables among files, shards joined; InputError if some shard is not there."""
    single: list[Found] = []
    shards: dict[tuple[Path, str, str, int], dict[int, Path]] = {}
    for path in entries:
        known = format_of(path)
        if known is None or path.name in METADATA or not path.is_file():
            continue
        name, suffix = known
        shard = SHARD.fullmatch(name)
        if shard is None:
            single.append(Found(name, suffix, (path,)))
            continue
        key = (path.parent, shard[1], suffix, int(shard[3]))
        shards.setdefault(key, {})[int(shard[2])] = path
    for (_, name, suffix, number), files in shards.items():
        missing = next((i for i in range(number) if i not in files), None)
        if missing is not None or len(files) != number:
            path = next(iter(files.values()))
            raise InputError(
                f"{path}: of its {number} files {len(files)} are here; "
                + (f"number {missing} is missing" if missing is not None else "some are too many")
            )
        single.append(Found(name, suffix, tuple(files[i] for i in range(number))))
    return single


def _by_part(
    folder: Path, tables: Iterable[Found], settings: DataSettings
) -> tuple[dict[str, Found], list[str]]:
    named: dict[str, Found] = {}
    notes = []
    aliases = _aliases(settings)
    for table in tables:
        part = aliases.get(table.name.casefold())
        if part is None:
            continue
        if part in named:
            raise InputError(
                f"data.path: {str(folder)!r} holds {named[part].shown} and {table.shown}, both for "
                f"the {part} part; leave one of them"
            )
        named[part] = table
        if table.name.casefold() != part:
            notes.append(f"{folder}: {table.shown} is taken for the {part} part")
    return named, notes


def _aliases(settings: DataSettings) -> dict[str, str]:
    given = (settings.splits or {}).items()
    return {t.casefold(): ours for ours, t in given if ours in ALIASES} | ALIASES


def _check_unread(entries: Iterable[Path], named: Mapping[str, Found]) -> None:
    """Raise InputError for a file that is called as a part that is not there, in no known format."""
    for path in entries:
        part = ALIASES.get(path.name.split(".")[0].casefold())
        known = format_of(path) is not None
        if part is None or part in named or known or path.suffix.casefold() not in UNREAD:
            continue
        raise InputError(
            f"{path}: would be the {part} part by its name, but its format is not read; it must be "
            f"one of {KNOWN}"
        )


def parts_of_splits(
    splits: Iterable[str], place: str, settings: DataSettings
) -> tuple[dict[str, str], list[str]]:
    """Return which split of a data set is which part, and lines to be told.

    `data.splits` decides; without it the splits' names do, and a single split is "all". Raises
    InputError for a split that is not there, two for one part, none that is known.
    """
    have = list(splits)
    if settings.splits is not None:
        for theirs in settings.splits.values():
            if theirs not in have:
                raise InputError(f"data.splits: {theirs!r} is not a split of {place}: {have}")
        return dict(settings.splits), []
    found: dict[str, str] = {}
    notes = []
    for theirs in have:
        part = ALIASES.get(theirs.casefold())
        if part is None:
            continue
        if part in found:
            raise InputError(
                f"{place}: its splits {found[part]!r} and {theirs!r} are both for the {part} part; "
                f"say which with data.splits, as 'data.splits={{{part}: {theirs}}}'"
            )
        found[part] = theirs
        if theirs.casefold() != part:
            notes.append(f"{place}: its split {theirs!r} is taken for the {part} part")
    if len(have) == 1 and not found:
        return {"all": have[0]}, notes
    if not found or ("train" not in found and len(found) < len(have)):
        raise InputError(
            f"{place}: which of its splits {have} is which part? Say it with data.splits, as "
            f"'data.splits={{train: {have[0] if have else 'NAME'}}}'"
        )
    unused = [s for s in have if s not in found.values()]
    if unused:
        notes.append(f"{place}: its splits {', '.join(unused)} are no parts and are not read")
    return found, notes


def _no_data(entries: Iterable[Path]) -> str:
    inside = next((p for p in entries if p.is_dir() and _holds_data(p)), None)
    more = f"; its folder {inside.name!r} does: data.path={inside}" if inside is not None else ""
    return f"nor {KNOWN}{more}"


def _holds_data(folder: Path) -> bool:
    try:
        return any(format_of(p) is not None for p in folder.iterdir())
    except OSError:
        return False


def _list(tables: Iterable[Found]) -> str:
    names = [t.shown for t in tables]
    return ", ".join(names[:10]) + (f" and {len(names) - 10} more" if len(names) > 10 else "")
