"""What a process has read and tokenised, kept for its next run: a study has hundreds of runs."""

import hashlib
from collections import OrderedDict
from collections.abc import Callable, Hashable, Iterable
from pathlib import Path
from typing import Generic, TypeVar, final

T = TypeVar("T")

MOST = 2  # of each kind: a data set and the one before it


@final
class Kept(Generic[T]):
    """The last few values by what they follow from. Nobody may change what is kept."""

    def __init__(self) -> None:
        self._values: OrderedDict[Hashable, T] = OrderedDict()

    def get(self, key: Hashable | None, make: Callable[[], T]) -> T:
        """Return the value of a key, made if it is not there; of the key None always anew."""
        if key is None:
            return make()
        if key not in self._values:
            self._values[key] = make()
            while len(self._values) > MOST:
                self._values.popitem(last=False)
        self._values.move_to_end(key)
        return self._values[key]


def signature(path: Path) -> tuple[tuple[str, int, int, int, int], ...] | None:
    """Return of a file, or of all files in a folder at any depth, what changes when they do.

    That is name, size, the times of change of content and of all about it, which a copy that keeps
    times does not set, and which file it is. None if they cannot be looked at: what was read there
    must not be kept.
    """
    try:
        files: Iterable[Path] = [path]
        if path.is_dir():
            files = sorted(p for p in path.rglob("*") if p.is_file())
        stats = [(str(file), file.stat()) for file in files]
    except OSError:
        return None
    return tuple((n, s.st_size, s.st_mtime_ns, s.st_ctime_ns, s.st_ino) for n, s in stats)


def digest_of(texts: Iterable[tuple[str, ...]]) -> bytes:
    """Return a digest (32 bytes) of texts in their order."""
    found = hashlib.blake2b(digest_size=32)
    for text in texts:
        found.update(len(text).to_bytes(8, "big"))
        for column in text:
            data = column.encode("utf-8", "surrogatepass")
            found.update(len(data).to_bytes(8, "big") + data)
    return found.digest()
