"""Every random draw of a run, as named streams.

A stream is identified by (seed, purpose, *keys), where the keys are usually the round and the
client. Streams of different identity are independent (the identity is hashed with SHA-256), so no
draw depends on the order of clients, on the number of workers, or on which other draws were made.
Nothing in the package seeds a global generator.
"""

import hashlib
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum

import numpy as np
import torch


class Purpose(StrEnum):
    """What a stream is for; every draw of a run has exactly one of these."""

    SPLIT = "split"
    PARTITION = "partition"
    PARTICIPATION = "participation"
    SAMPLING = "sampling"
    NOISE = "noise"
    DROPOUT = "dropout"
    ADAPTER = "adapter"
    HEAD = "head"
    SKETCH = "sketch"
    SUBSPACE = "subspace"
    FAULTS = "faults"
    ATTACK = "attack"
    AUDIT = "audit"


def stream_seed(seed: int, purpose: Purpose, *keys: int | str) -> int:
    """Return the 63-bit seed of the stream (seed, purpose, *keys)."""
    identity = "\x1f".join(
        [str(int(seed)), str(purpose), *(f"{type(k).__name__}:{k}" for k in keys)]
    )
    digest = hashlib.sha256(identity.encode()).digest()
    return int.from_bytes(digest[:8], "big") >> 1


def attempt_key(attempt: int) -> tuple[str, ...]:
    """Return what a stream's keys get in a further attempt at a round; nothing in the first."""
    return (f"attempt {attempt}",) if attempt else ()


def torch_stream(
    seed: int, purpose: Purpose, *keys: int | str, device: torch.device | str = "cpu"
) -> torch.Generator:
    """Return a torch generator at the start of its stream, on `device`."""
    return torch.Generator(device=device).manual_seed(stream_seed(seed, purpose, *keys))


def numpy_stream(seed: int, purpose: Purpose, *keys: int | str) -> np.random.Generator:
    """Return a NumPy generator at the start of its stream."""
    return np.random.default_rng(stream_seed(seed, purpose, *keys))


@contextmanager
def scoped_dropout(seed: int, round: int, client: int, device: torch.device) -> Iterator[None]:
    """Draw dropout masks from their own stream and leave the global generators as they were.

    torch's dropout takes no generator, so the global one is seeded inside a fork that is undone.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.manual_seed(stream_seed(seed, Purpose.DROPOUT, round, client))
        yield
