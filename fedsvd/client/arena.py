"""Room for many small tensors: memory up to a budget, then files that have no name, or none."""

import errno
import mmap
import os
import tempfile
from typing import final

import torch
from torch import Tensor

CHUNK = 2**24  # bytes that are taken at once
ALIGNED = 64  # bytes


@final
class Arena:
    """Keeps copies of CPU tensors for as long as it lives; nothing is ever taken out.

    Without `on_disk` there is no more room than the budget. Files are mapped into memory, in the
    folder for temporary files (`TMPDIR`), and are removed from it as soon as they are open: whatever
    ends the process, nothing stays.
    """

    def __init__(self, budget: int, on_disk: bool = True) -> None:
        self.budget, self.on_disk = budget, on_disk  # bytes of memory
        self.memory = self.files = 0  # bytes taken of each
        self._chunk = torch.empty(0, dtype=torch.uint8)
        self._at = 0

    def hold(self, value: Tensor) -> Tensor:
        """Return a copy of the tensor that is kept here; OSError where there is no room."""
        size = value.numel() * value.element_size()
        # What is made in inference mode could enter no step.
        with torch.inference_mode(False), torch.no_grad():
            if self._at + size > len(self._chunk):
                self._chunk, self._at = self._new(size), 0
            held = self._chunk[self._at : self._at + size].view(value.dtype).view(value.shape)
            self._at += -(-size // ALIGNED) * ALIGNED
            return held.copy_(value)

    def _new(self, least: int) -> Tensor:
        size = max(CHUNK, least)
        if not self.on_disk:
            size = max(least, min(CHUNK, self.budget - self.memory))
        if self.memory + size <= self.budget:
            self.memory += size
            return torch.empty(size, dtype=torch.uint8)
        if not self.on_disk:
            raise OSError(errno.ENOMEM, f"{self.budget} bytes are full")
        with tempfile.TemporaryFile(prefix="fedsvd-") as file:
            _reserve(file.fileno(), size)
            mapped = mmap.mmap(file.fileno(), size)
        self.files += size
        return torch.frombuffer(mapped, dtype=torch.uint8)


def _reserve(file: int, size: int) -> None:
    """Give a file its size, and the disk's blocks where that is possible.

    A disk that is full is then an error here; written through the map it would kill the process.
    """
    os.ftruncate(file, size)
    reserve = getattr(os, "posix_fallocate", None)  # not on every system
    if reserve is not None:
        reserve(file, 0, size)
