"""Running a backbone without its first blocks, or up to one of them."""

import functools
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from typing import Any, final

from torch import Tensor, nn


@final
class Lower:
    """Lets the blocks from number `start` on run from hidden states that are given.

    Every block's `forward` is replaced by one that asks here whether it shall run or pass on what it
    gets; names, hooks and modes of the modules stay as they are, and all around the blocks runs as
    ever: embeddings, masks, positions, the last norm. A block must take its hidden states as the
    first argument or as `hidden_states`, and return them alone or as the first of a tuple; `observed`
    finds out, with a run of the whole.
    """

    def __init__(self, blocks: Sequence[nn.Module], start: int) -> None:
        self.start, self._blocks = start, list(blocks)
        self._returns: dict[
            int, int
        ] = {}  # by block: 0 for hidden states alone, or a tuple's length
        self._before = [block.__dict__.get("forward") for block in self._blocks]
        self._mode = "whole"
        self._given: Tensor | None = None
        self._seen: Tensor | None = None
        for number, block in enumerate(self._blocks):
            known: Any = block
            known.forward = self._wrapped(number, known.forward)

    def remove(self) -> None:
        """Give every block its own `forward` back."""
        for block, before in zip(self._blocks, self._before, strict=True):
            block.__dict__.pop("forward", None)
            if before is not None:
                block.__dict__["forward"] = before

    @contextmanager
    def whole(self) -> Iterator[None]:
        """Run every block, whatever an interrupted run has left."""
        with self._as("whole"):
            yield

    @contextmanager
    def observed(self) -> Iterator[None]:
        """Note what every block returns; TypeError if that is no hidden states."""
        with self._as("observe"):
            yield

    @contextmanager
    def above(self, entering: Tensor) -> Iterator[None]:
        """Skip the blocks below `start` and give that one `entering` (n, t, d)."""
        with self._as("above"):
            self._given = entering
            yield

    @contextmanager
    def below(self) -> Iterator[Callable[[], Tensor]]:
        """Run the blocks below `start` alone; what is given returns what would have entered it."""
        with self._as("below"):
            yield self._entering

    @contextmanager
    def _as(self, mode: str) -> Iterator[None]:
        try:
            self._mode = mode
            yield
        finally:
            self._mode, self._given, self._seen = "whole", None, None

    def _entering(self) -> Tensor:
        if self._seen is None:
            raise TypeError("its blocks are not called one after another")
        return self._seen

    def _wrapped(self, number: int, real: Callable[..., Any]) -> Callable[..., Any]:
        @functools.wraps(real)
        def forward(*args: Any, **kwargs: Any) -> Any:
            if self._mode == "whole":
                return real(*args, **kwargs)
            if self._mode == "observe":
                returned = real(*args, **kwargs)
                self._returns[number] = _form(returned)
                return returned
            hidden = args[0] if args else kwargs["hidden_states"]
            if self._mode == "above" and number >= self.start:
                if number == self.start:
                    args, kwargs = _with(self._given, hidden, args, kwargs)
                return real(*args, **kwargs)
            if self._mode == "below" and number < self.start:
                return real(*args, **kwargs)
            if number == self.start:
                self._seen = hidden
            length = self._returns[number]
            return (hidden, *[None] * (length - 1)) if length else hidden

        return forward


def _form(returned: Any) -> int:
    """Return 0 for a tensor, n for a plain tuple of n whose first is one."""
    if isinstance(returned, Tensor):
        return 0
    if type(returned) is tuple and returned and isinstance(returned[0], Tensor):
        return len(returned)
    raise TypeError(f"its blocks return {type(returned).__name__}")


def _with(
    given: Tensor | None, hidden: Tensor, args: tuple[Any, ...], kwargs: dict[str, Any]
) -> tuple[tuple[Any, ...], dict[str, Any]]:
    """Return a block's arguments with other hidden states of the same shape."""
    if given is None or given.shape != hidden.shape:
        shape = None if given is None else tuple(given.shape)
        raise RuntimeError(f"a block takes {tuple(hidden.shape)}, kept are {shape}")
    return ((given, *args[1:]), kwargs) if args else (args, {**kwargs, "hidden_states": given})
