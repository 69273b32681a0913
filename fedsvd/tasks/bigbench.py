"""Files of the archive of bigbench."""

import json
import tarfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

ROOT = "bigbench-1.0.0"


def read_files(archive: Path, names: Iterable[str]) -> dict[str, bytes]:
    """Return files of the archive by their paths below the root, in one pass over it."""
    wanted = {f"{ROOT}/{name}": name for name in names}
    found: dict[str, bytes] = {}
    with tarfile.open(archive, "r|gz") as tar:
        for member in tar:
            if member.name in wanted:
                file = tar.extractfile(member)
                assert file is not None, member.name
                found[wanted[member.name]] = file.read()
                if len(found) == len(wanted):
                    break
    return found


def read_json(archive: Path, names: Iterable[str]) -> dict[str, Any]:
    """Return what JSON files of the archive hold, by path."""
    return {name: json.loads(text) for name, text in read_files(archive, names).items()}


def chosen(example: Any) -> str:
    """Return the one right answer of an example with target scores."""
    (right,) = [name for name, score in example["target_scores"].items() if score == 1]
    return str(right)
