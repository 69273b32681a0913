"""Reading labelled texts from packages, files, folders and the Hugging Face hub."""

import importlib.util
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from fedsvd.data.files import read_rows
from fedsvd.errors import InputError, nearest
from fedsvd.settings import DataSettings

PARTS = ("train", "validation", "test")
SUFFIXES = (".csv", ".jsonl")


@dataclass(frozen=True)
class Table:
    """Texts (tuples of one or two strings) and labels (names or indices) of one part."""

    texts: list[tuple[str, ...]]
    labels: list[Any]
    label_names: tuple[str, ...] | None = None
    rows: list[str] = field(default_factory=list)  # where each stands, for messages
    ids: list[str] = field(default_factory=list)  # with data.id


def read_tables(settings: DataSettings) -> tuple[dict[str, Table], str]:
    """Return the tables of a task and a phrase that says where they came from.

    The keys are "all" for a source without a split, otherwise a subset of train, validation, test;
    and "public" if it holds texts that anybody may see.
    `data.path` wins; then the installed package; then the hub. Raises InputError.
    """
    if settings.path is not None:
        path = Path(settings.path).expanduser()
        if path.is_dir():
            return _read_folder(path, settings), str(path)
        if path.is_file():
            return {"all": _read_file(path, settings)}, str(path)
        if path.is_absolute() or path.suffix in SUFFIXES or settings.path.count("/") != 1:
            raise InputError(f"data.path: {settings.path!r} does not exist")
        return _read_hub(settings.path, settings), f"hub: {settings.path}"
    if settings.package is not None and settings.file is not None:
        packaged = package_file(settings.package, settings.file)
        if packaged is not None:
            return {"all": _read_file(packaged, settings)}, f"package: {settings.package}"
    if settings.hub is not None:
        return _read_hub(settings.hub, settings), f"hub: {settings.hub}"
    raise InputError("data: set data.path to a folder, a .csv or .jsonl file, or a hub id")


def package_file(package: str, file: str) -> Path | None:
    """Return the path of a file or folder inside an installed package, without importing it."""
    spec = importlib.util.find_spec(package)
    if spec is None or not spec.submodule_search_locations:
        return None
    path = Path(next(iter(spec.submodule_search_locations))) / file
    return path if path.exists() else None


def _read_folder(folder: Path, settings: DataSettings) -> dict[str, Table]:
    """Read train/validation/test files of a folder, or the one file that it holds; and public."""
    files = {p.stem: p for p in sorted(folder.iterdir()) if p.suffix in SUFFIXES}
    if not files:
        raise InputError(f"data.path: {str(folder)!r} holds no .csv or .jsonl file")
    public = files.pop("public", None)
    beside = {} if public is None else {"public": _read_file(public, settings)}
    if "train" in files or (files.keys() <= set(PARTS) and len(files) > 1):
        given = {part: _read_file(files[part], settings) for part in PARTS if part in files}
        return {**given, **beside}
    if len(files) == 1:
        return {"all": _read_file(next(iter(files.values())), settings), **beside}
    raise InputError(
        f"data.path: {str(folder)!r} must hold train.csv (or .jsonl), or a single file"
    )


def _read_file(path: Path, settings: DataSettings) -> Table:
    """Read a CSV or JSONL file with the configured columns."""
    columns, rows = read_rows(path)
    wanted = [("data.text", c) for c in settings.text] + [("data.label", settings.label)]
    wanted += [("data.filter", c) for c in settings.filter or {}]
    wanted += [("data.id", settings.id)] if settings.id is not None else []
    for key, column in wanted:
        if column not in columns:
            near = nearest(column, columns)
            meant = f" (did you mean {near!r}?)" if near else ""
            raise InputError(
                f"{path}: no column {column!r} ({key}){meant}; it has {', '.join(columns)}"
            )
    table = Table([], [], rows=[], ids=[])
    for line, row in rows:
        for key, column in wanted:
            if column not in row:
                raise InputError(f"{path}: line {line}: no {column!r} ({key})")
        if any(str(row[c]) != str(v) for c, v in (settings.filter or {}).items()):
            continue
        for column in settings.text:
            if not isinstance(row[column], str) or not row[column].strip():
                raise InputError(f"{path}: line {line}: column {column!r} holds no text")
        label = row[settings.label]
        if isinstance(label, (dict, list, type(None), float)) or label == "":
            raise InputError(
                f"{path}: line {line}: column {settings.label!r} holds no label but {label!r}"
            )
        table.texts.append(tuple(row[column] for column in settings.text))
        table.labels.append(label)
        table.rows.append(f"{path}: line {line}")
        if settings.id is not None:
            table.ids.append(str(row[settings.id]))
    if not table.texts:
        raise InputError(f"{path}: no rows" + (" after data.filter" if settings.filter else ""))
    return table


def _read_hub(name: str, settings: DataSettings) -> dict[str, Table]:
    """Read a dataset of the Hugging Face hub by id."""
    import datasets

    try:
        loaded = datasets.load_dataset(name, settings.hub_config)
    except Exception as error:  # the hub client raises a dozen unrelated types
        raise InputError(f"data: hub dataset {name!r} cannot be loaded: {_line(error)}") from error
    wanted = settings.splits or {p: p for p in PARTS if p in loaded}
    tables = {}
    for ours, theirs in wanted.items():
        if theirs not in loaded:
            raise InputError(f"data.splits: {theirs!r} is not a split of {name}: {list(loaded)}")
        part = loaded[theirs]
        for column in (*settings.text, settings.label):
            if column not in part.column_names:
                raise InputError(f"{name}: no column {column!r}; it has {part.column_names}")
        feature = part.features[settings.label]
        labels = part[settings.label]
        texts = list(zip(*(part[column] for column in settings.text), strict=True))
        tables[ours] = Table(texts, list(labels), tuple(getattr(feature, "names", ())) or None)
    return tables


def _line(error: Exception) -> str:
    return (str(error).splitlines() or [type(error).__name__])[0][:200]
