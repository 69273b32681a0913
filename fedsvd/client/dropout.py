"""Dropout whose masks belong to examples, not to places in a batch.

torch draws a mask from the place that an element has in a padded batch: with one example removed, all
others get other masks, and a step's sum moves by much more than the clip. Here an element's mask is
a function of a key of its example, of the number of the dropout call in the forward pass, and of the
element's place in the example. Batch, order and padding are not in it.
"""

import hashlib
import os
from collections.abc import Callable, Iterator, Sequence
from contextlib import AbstractContextManager, contextmanager, nullcontext
from typing import Any, final

import torch
from torch import Tensor
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode, _get_current_function_mode_stack, _pop_mode

from fedsvd.data.tokens import Tokens
from fedsvd.randomness import Purpose, stream_key, torch_generator

GAMMA = 0x9E3779B97F4A7C15 - 2**64
FIRST, SECOND = 0xBF58476D1CE4E5B9 - 2**64, 0x94D049BB133111EB - 2**64
BITS = 24  # of a word that are compared with the probability

# torch's other dropouts: none of them is known to have the example as its first axis.
UNKNOWN = {
    F.dropout1d, F.dropout2d, F.dropout3d, F.alpha_dropout, F.feature_alpha_dropout,
    torch.alpha_dropout, torch.feature_dropout, torch.feature_alpha_dropout,
}  # fmt: skip


class NoExampleAxis(Exception):
    """A dropout mask cannot be told apart by examples."""


KeyOf = Callable[[int], int]


def keys_of_step(tokens: Tokens, seed: int | None, *keys: int | str) -> KeyOf:
    """Return what gives each row of `tokens` its 63-bit key in one step.

    With a `seed` it is that of the stream (seed, "dropout", *keys, the example's tokens): it follows
    from what the example is, not from its number, which an example added before it would change.
    Without one the operating system gives every row a key, once a step, which nobody can repeat.
    """
    known: dict[int, int] = {}

    def key(row: int) -> int:
        if row not in known:
            if seed is None:
                known[row] = int.from_bytes(os.urandom(8), "big") >> 1
            else:
                name = digest(tokens, row)
                known[row] = stream_key(seed, Purpose.DROPOUT, *keys, name) >> 65
        return known[row]

    return key


def digest(tokens: Tokens, row: int) -> str:
    """Return a digest of an example: its tokens and its label."""
    label = str(int(tokens.labels[row])).encode()
    return hashlib.sha256(label + tokens.spelled(row)).hexdigest()


@contextmanager
def masks_of(keys: Sequence[int]) -> Iterator["KeyedDropout"]:
    """Draw the dropout masks of forward passes on examples with these keys, in the batch's order."""
    mode = KeyedDropout(keys)
    try:
        with mode:
            yield mode
    finally:
        mode.keys = None


@contextmanager
def seeded(key: int, device: torch.device) -> Iterator[None]:
    """Let whatever else draws from torch's global generators draw from `key`, and undo it after.

    It is for one example at a time.
    """
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        torch.set_rng_state(torch_generator(key).get_state())  # a seed would keep 32 bits of it
        if device.type == "cuda":
            torch.cuda.manual_seed_all(key)
        yield


def own_losses(
    losses: Callable[[Sequence[int]], Tensor], key: KeyOf, device: torch.device, drops: bool,
    loop: bool,
) -> Callable[[Sequence[int]], Tensor]:  # fmt: skip
    """Return `losses` of rows, (n,), with random draws that belong to each row.

    `key(row)` is a row's key in this step, `drops` whether the model drops anything. In a `loop` rows
    come one at a time, and whatever else the model draws is drawn from the row's key too.
    """

    def own(rows: Sequence[int]) -> Tensor:
        if not loop and not drops:
            return losses(rows)
        keys = [key(row) for row in rows]
        with seeded(keys[0], device) if loop else nullcontext(), masks_of(keys):
            return losses(rows)

    return own


def standing() -> Callable[[], AbstractContextManager[object]]:
    """Return what draws the same masks again as those from here on, once this pass is over."""
    mode = next(
        (m for m in _get_current_function_mode_stack() if isinstance(m, KeyedDropout)), None
    )
    if mode is None or mode.keys is None:
        return nullcontext
    keys, calls = list(mode.keys), mode.calls

    def again() -> KeyedDropout:
        found = KeyedDropout(keys)
        found.calls = calls
        return found

    return again


def clear() -> None:
    """Take off what an interrupted `masks_of` has left on this thread."""
    stack = _get_current_function_mode_stack()
    while stack and isinstance(stack[-1], KeyedDropout):
        _pop_mode()
        stack = _get_current_function_mode_stack()


@final
class KeyedDropout(TorchFunctionMode):
    """Takes the place of torch's dropout while it is entered; without keys it does nothing.

    Raises NoExampleAxis for a mask whose first axis does not have the batch's size, and for kinds of
    dropout that have no such axis. A batch of one example needs none: all is that example's.
    """

    def __init__(self, keys: Sequence[int]) -> None:
        super().__init__()
        self.keys: Sequence[int] | None = list(keys)
        self.calls = 0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        """Return what torch would, but for dropout."""
        kwargs = kwargs or {}
        if self.keys is not None:
            if func is F.dropout:
                return self._dropout(*args, **kwargs)
            if func is torch.dropout:
                return self._dropout(*_of_torch(*args, **kwargs))
            if func is F.scaled_dot_product_attention and _probability(args, kwargs) > 0:
                raise NoExampleAxis("dropout within fused attention")
            if func in UNKNOWN and kwargs.get("training", kwargs.get("train", True)):
                raise NoExampleAxis(f"{func.__name__}")
        return func(*args, **kwargs)

    def _dropout(
        self, input: Tensor, p: float = 0.5, training: bool = True, inplace: bool = False
    ) -> Tensor:
        if not training or p == 0:
            return input
        assert self.keys is not None
        self.calls += 1
        kept = keep(self.keys, self.calls, input.shape, p, input.device)
        scaled = kept.to(input.dtype).mul_(0.0 if p == 1 else 1 / (1 - p))
        return input.mul_(scaled) if inplace else input * scaled


def _of_torch(input: Tensor, p: float, train: bool) -> tuple[Tensor, float, bool]:
    return input, p, train


def _probability(args: Sequence[Any], kwargs: dict[str, Any]) -> float:
    return float(args[4] if len(args) > 4 else kwargs.get("dropout_p", 0.0))


def keep(
    keys: Sequence[int], call: int, shape: Sequence[int], p: float, device: torch.device | str
) -> Tensor:
    """Return a boolean mask of `shape`, True with probability 1 - p.

    Element (i, j, k, ...) is from word k of the stream that starts at word j of the stream that
    starts at word `call` of the stream keys[i], by SplitMix64, a counter-based generator that splits
    (Steele, Lea and Flood, OOPSLA 2014). So an axis that is longer changes nothing in its beginning.
    """
    if len(shape) and shape[0] == len(keys):
        rest = shape[1:]
    elif len(keys) == 1:
        rest = shape
    else:
        raise NoExampleAxis(f"a mask of shape {tuple(shape)} in a batch of {len(keys)}")
    start = torch.tensor([call], dtype=torch.int64, device=device) * GAMMA
    words = _mix(torch.tensor(keys, dtype=torch.int64, device=device) + start)
    for size in rest:
        steps = torch.arange(1, size + 1, dtype=torch.int64, device=device) * GAMMA
        words = _mix(words.unsqueeze(-1) + steps)
    drawn = words.bitwise_right_shift_(64 - BITS).bitwise_and_(2**BITS - 1)
    return (drawn < round((1 - p) * 2**BITS)).view(tuple(shape))


def _mix(z: Tensor) -> Tensor:
    """Return SplitMix64's finaliser of 64-bit words, in place."""
    z.bitwise_xor_(_shifted(z, 30)).mul_(FIRST)
    z.bitwise_xor_(_shifted(z, 27)).mul_(SECOND)
    return z.bitwise_xor_(_shifted(z, 31))


def _shifted(z: Tensor, by: int) -> Tensor:
    """Return words shifted to the right, filled with zeros: torch repeats the sign."""
    return z.bitwise_right_shift(by).bitwise_and_(2 ** (64 - by) - 1)
