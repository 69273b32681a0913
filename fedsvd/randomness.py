"""Every random draw of a run, as named streams.

A stream is identified by (seed, purpose, *keys), where the keys are usually the round, the client
and the attempt. The identity is hashed to the 128-bit key of a counter-based generator, Philox4x64
with 10 rounds (Salmon et al., SC 2011), and one key is one stream. So no draw depends on the order
of clients, on the number of workers, or on which other draws were made. Nothing in the package seeds
a global generator. What must not follow from the seed is drawn from the operating system: the
generator is None then. See docs/randomness.md.
"""

import hashlib
import json
import os
from collections.abc import Iterator
from contextlib import contextmanager
from enum import StrEnum
from operator import index

import numpy as np
import torch
from cryptography.hazmat.primitives.ciphers import Cipher, algorithms, modes


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
    CHECK = "check"
    AUDIT = "audit"
    EVALUATION = "evaluation"


# How keys, streams and noise are made. A run is only continued by what makes them as it did: the
# round that was interrupted would otherwise be released a second time under another noise.
SCHEME = "sha256, philox4x64-10, box-muller in float64"


def stream_key(seed: int, purpose: Purpose, *keys: int | str) -> int:
    """Return the key, below 2^128, of the stream (seed, purpose, *keys): half of a SHA-256.

    `seed` is any whole number, negative or above 2^64 too. Different identities are different texts
    under the hash, so among n streams two share a key with a chance of about n^2 / 2^129. TypeError
    for a key that is neither a whole number nor a text.
    """
    parts = [seed, str(purpose), *keys]
    # A text is quoted and a number is not, so no two lists are written alike.
    told = [json.dumps(p) if isinstance(p, str) else f"{index(p):x}" for p in parts]
    return int.from_bytes(hashlib.sha256(",".join(told).encode()).digest()[:16], "big")


def attempt_key(attempt: int) -> tuple[str, ...]:
    """Return what a stream's keys get in a further attempt at a round; nothing in the first."""
    return (f"attempt {attempt}",) if attempt else ()


def numpy_stream(seed: int, purpose: Purpose, *keys: int | str) -> np.random.Generator:
    """Return a NumPy generator at the start of its stream."""
    return np.random.Generator(np.random.Philox(key=stream_key(seed, purpose, *keys)))


# torch's CPU generator as bytes: the seed it reports (8), words left before the next twist (4), a
# flag (4), the place in the state (8), 624 words of the Mersenne Twister in 8 bytes each, and what
# it keeps of normals (40).
_TWISTER, _HEAD, _SIZE = 624, 24, 5056


def torch_stream(seed: int, purpose: Purpose, *keys: int | str) -> torch.Generator:
    """Return a torch generator on the CPU at the start of its stream; see `torch_generator`."""
    return torch_generator(stream_key(seed, purpose, *keys))


def torch_generator(key: int) -> torch.Generator:
    """Return a torch generator on the CPU for a key below 2^128.

    torch keeps 32 bits of a seed on the CPU. So all 19,968 bits of the Mersenne Twister's state are
    set from the Philox of the key, and carry all of it. Not for noise or batches under privacy.
    """
    words = np.random.Philox(key=key).random_raw(_TWISTER // 2).view(np.uint32)
    generator = torch.Generator()
    state = generator.get_state().numpy()
    if len(state) != _SIZE:
        raise RuntimeError(
            f"torch {torch.__version__} has another CPU generator than is known here"
        )
    state[:_HEAD].view(np.uint32)[:] = [key & 0xFFFFFFFF, key >> 32 & 0xFFFFFFFF, 1, 1, 0, 0]
    state[_HEAD : _HEAD + 8 * _TWISTER].view(np.uint64)[:] = words
    state[_HEAD + 8 * _TWISTER :] = 0
    return generator.set_state(torch.from_numpy(state))


def words(count: int, generator: np.random.Generator | None) -> np.ndarray:
    """Return `count` uniform 64-bit words (uint64) from a stream or, if None, from the system.

    The system's are the key stream of AES-256 in counter mode, under a key of 256 bits from the
    operating system (`os.urandom`) that is drawn for this call and forgotten after it. Whoever wants
    to tell them from true randomness, or to find one from others, must break AES-256 or the operating
    system's generator, which is asked for the key alone because it is slow. TypeError for another
    kind of generator.
    """
    if isinstance(generator, np.random.Generator):
        return generator.integers(0, 2**64, size=count, dtype=np.uint64)
    if generator is not None:  # such as torch's, which has 32 bits of seed
        raise TypeError(f"a numpy.random.Generator or None, not {type(generator).__name__}")
    cipher = Cipher(algorithms.AES(os.urandom(32)), modes.CTR(bytes(16))).encryptor()
    return np.frombuffer(bytearray(cipher.update(bytes(8 * count))), dtype=np.uint64)


def uniforms(count: int, generator: np.random.Generator | None) -> np.ndarray:
    """Return float64 values uniform over the 2^53 multiples of 2^-53 in [0, 1); see `words`."""
    return (words(count, generator) >> np.uint64(11)) * 2.0**-53


@contextmanager
def scoped_dropout(seed: int, round: int, client: int, device: torch.device) -> Iterator[None]:
    """Draw dropout masks from their own stream and leave the global generators as they were.

    torch's dropout takes no generator, so the global one is set inside a fork that is undone.
    """
    devices = [device] if device.type == "cuda" else []
    with torch.random.fork_rng(devices=devices):
        torch.set_rng_state(torch_stream(seed, Purpose.DROPOUT, round, client).get_state())
        if devices:  # Philox there: a key of 64 bits and a counter
            torch.cuda.manual_seed_all(stream_key(seed, Purpose.DROPOUT, round, client) >> 65)
        yield
