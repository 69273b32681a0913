"""Parquet and Arrow files, folders of `save_to_disk` and data sets of the hub, a batch at a time."""

import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsvd.data.files import check_columns
from fedsvd.data.source import Rows, Source
from fedsvd.errors import InputError

BATCH = 4096  # rows that are converted at once
# What marks a folder of datasets.DatasetDict.save_to_disk, and one of Dataset.save_to_disk.
SPLITS_FILE, STATE_FILES = "dataset_dict.json", ("state.json", "dataset_info.json")


def read_parquet(path: Path) -> Source:
    """Return the columns and rows of a Parquet file; InputError if it is none."""
    from pyarrow import parquet

    try:
        file = parquet.ParquetFile(path)
    except Exception as error:  # pyarrow raises its own types, OSError and ValueError
        raise _unreadable(str(path), "Parquet", error) from error

    def batches(columns: Sequence[str]) -> Iterator[Any]:
        return iter(file.iter_batches(BATCH, columns=list(columns)))

    return _source(str(path), file.schema_arrow, batches, "Parquet")


def read_arrow(path: Path) -> Source:
    """Return the columns and rows of an Arrow file: a stream, or one with a footer."""
    import pyarrow as pa

    try:
        with pa.memory_map(str(path)) as file:
            try:
                table = pa.ipc.open_stream(file).read_all()
            except pa.ArrowInvalid:
                file.seek(0)
                table = pa.ipc.open_file(file).read_all()
    except Exception as error:  # pyarrow raises its own types, OSError and ValueError
        raise _unreadable(str(path), "Arrow", error) from error

    def batches(columns: Sequence[str]) -> Iterator[Any]:
        return iter(table.select(list(columns)).to_batches(BATCH))

    return _source(str(path), table.schema, batches, "Arrow")


def read_dataset(place: str, data: Any) -> Source:
    """Return the columns and rows of a `datasets.Dataset`, in the order that it has."""

    def batches(columns: Sequence[str]) -> Iterator[Any]:
        return iter(data.select_columns(list(columns)).with_format("arrow").iter(BATCH))

    names = {
        column: tuple(feature.names)
        for column, feature in data.features.items()
        if getattr(feature, "names", None)
    }
    return Source(
        place, tuple(data.column_names), lambda columns: _rows(place, batches, columns, "Arrow"),
        "row", names,
    )  # fmt: skip


def is_saved(folder: Path) -> bool:
    """Return whether a folder was written by `save_to_disk`."""
    whole = all((folder / name).is_file() for name in STATE_FILES)
    return whole or (folder / SPLITS_FILE).is_file()


def load_saved(folder: Path) -> Mapping[str, Any]:
    """Return the data sets of a folder of `save_to_disk` by split; "all" where there are none."""
    import datasets

    try:
        found = datasets.load_from_disk(str(folder), keep_in_memory=False)
    except Exception as error:  # datasets raises whatever its files lead to
        raise _unreadable(str(folder), "a folder of save_to_disk", error) from error
    return found if isinstance(found, datasets.DatasetDict) else {"all": found}


def _source(
    place: str, schema: Any, batches: Callable[[Sequence[str]], Iterator[Any]], kind: str
) -> Source:
    check_columns(place, list(schema.names))
    return Source(
        place, tuple(schema.names), lambda columns: _rows(place, batches, columns, kind), "row",
        _classes(schema),
    )  # fmt: skip


def _rows(
    place: str, batches: Callable[[Sequence[str]], Iterator[Any]], columns: Sequence[str], kind: str
) -> Rows:
    number = 0
    try:
        for batch in batches(list(dict.fromkeys(columns))):
            for row in batch.to_pylist():
                number += 1
                yield number, row
    except Exception as error:  # a page that is cut short or packed in an unknown way
        raise _unreadable(f"{place}: row {number + 1}", kind, error) from error


def _classes(schema: Any) -> dict[str, tuple[str, ...]]:
    """Return the names of the classes of the columns that are `ClassLabel`s of Hugging Face.

    `datasets` writes its features as JSON under "huggingface" in the schema's metadata.
    """
    try:
        told = json.loads((schema.metadata or {}).get(b"huggingface", b"{}"))
        features = told["info"]["features"]
        return {
            column: tuple(map(str, feature["names"]))
            for column, feature in features.items()
            if isinstance(feature, dict)
            and feature.get("_type") == "ClassLabel"
            and isinstance(feature.get("names"), list)
        }
    except (ValueError, TypeError, KeyError, AttributeError):
        return {}  # not written by datasets: plain columns


def _unreadable(place: str, kind: str, error: Exception) -> InputError:
    reason = (str(error).splitlines() or [type(error).__name__])[0][:200]
    return InputError(f"{place}: cannot be read as {kind}: {reason}")
