"""What enters the lowest adapted block, kept for every example: below it nothing ever changes.

It is computed for the example alone, at its own length, so that it depends on nothing else: not on
the batch, the order, the process or the round in which it is asked for first.
"""

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import final

import torch
from torch import Tensor, nn

from fedsvd.adapters.blocks import find_blocks
from fedsvd.client.arena import Arena
from fedsvd.data.tokens import Tokens
from fedsvd.models.base import Model
from fedsvd.models.lower import Lower
from fedsvd.privacy.exactness import TOLERANCE, apart
from fedsvd.terminal import complain


@dataclass
class Store:
    """The hidden states (t, d) of examples, by a digest of their tokens and the precision.

    `dtypes`: by precision, that in which a block gets them. They are stored in bfloat16 where that is
    the precision, otherwise as they are.
    """

    arena: Arena
    held: dict[bytes, Tensor] = field(default_factory=dict)
    dtypes: dict[str, torch.dtype] = field(default_factory=dict)
    full: bool = False


_stores: dict[tuple[object, ...], Store] = {}


def store_for(key: tuple[object, ...], budget: int, on_disk: bool) -> Store:
    """Return the process's store for a key, which says all but the tokens; any other is given up.

    So trials one after another in a process, on the same weights, find what the first has made.
    """
    key = (*key, on_disk)
    if key not in _stores:
        _stores.clear()
        _stores[key] = Store(Arena(budget, on_disk))
    store = _stores[key]
    store.full = store.full and budget <= store.arena.budget
    store.arena.budget = budget
    return store


@final
class Kept:
    """What enters the first block above a classifier's `lower` part, of every example asked for.

    `trains`: whether local steps may start from it; there is no dropout below.
    """

    def __init__(
        self, model: Model, device: torch.device, store: Store, trains: bool = True
    ) -> None:
        self.model, self.device, self.store, self.trains = model, device, store, trains

    def apart(self) -> "Kept":
        """Return one that keeps nothing yet, and nothing for long."""
        room = self.store.arena
        return Kept(self.model, self.device, Store(Arena(room.budget, room.on_disk)), self.trains)

    def entering(self, tokens: Tokens, rows: Sequence[int]) -> Tensor:
        """Return the hidden states (n, t, d) of the rows, zero at padding, on the model's device."""
        with torch.inference_mode(False), torch.no_grad():
            found = [self._of(tokens, row) for row in rows]
            longest = max(len(states) for states in found)
            out = found[0].new_zeros(len(found), longest, found[0].shape[1])
            for place, states in zip(out, found, strict=True):
                place[: len(states)] = states
            dtype = self.store.dtypes[self.model.precision]
            return out.to(self.device, non_blocking=True).to(dtype)

    def _of(self, tokens: Tokens, row: int) -> Tensor:
        key = _digest(tokens, row, self.model.precision)
        known = self.store.held.get(key)
        if known is not None:
            return known
        states = self._computed(tokens, row)
        if not self.store.full:
            try:
                states = self.store.held[key] = self.store.arena.hold(states)
            except OSError as error:
                self.store.full = True
                disk = " or in the folder for temporary files (TMPDIR)"
                complain(
                    f"warning: training.cache: {error.strerror}; what finds no room in memory"
                    f"{disk if self.store.arena.on_disk else ''} is computed whenever it is needed"
                )
        return states

    def _computed(self, tokens: Tokens, row: int) -> Tensor:
        """Return an example's hidden states (t, d) as they are stored, on the CPU."""
        hidden = self.model.entering(tokens.batch([row], self.device).inputs)
        if hidden.ndim != 3 or hidden.shape[:2] != (1, int(tokens.lengths[row])):
            raise TypeError(f"a block takes {tuple(hidden.shape)} for one example")
        self.store.dtypes[self.model.precision] = hidden.dtype
        bf16 = self.model.precision == "bf16" and hidden.dtype == torch.float32
        return hidden[0].to("cpu", torch.bfloat16 if bf16 else hidden.dtype)


def _digest(tokens: Tokens, row: int, precision: str) -> bytes:
    told = precision.encode() + tokens.spelled(row)
    return hashlib.blake2b(told, digest_size=16).digest()


def keep(
    model: Model, asked: Tokens, device: torch.device, weights: str, budget: int | None,
    dropout: float, on_disk: bool = True,
) -> tuple[Kept | None, str]:  # fmt: skip
    """Return what keeps hidden states for the model, or None, and a phrase for the screen.

    None without a word if the lowest block is adapted, or `budget` is None (bytes of memory). If some
    blocks are below, the model is run on random texts `asked`, from what is kept and as a whole; if
    the two differ, it is left as it was, and the phrase says why. `weights` is a digest of the plain
    backbone's, "" if unknown; `dropout` is what is dropped within it in training. Without `on_disk`
    what finds no room in memory is computed again.
    """
    paths = {m: n for n, m in model.backbone.named_modules()}
    layers = [paths[layer] for layer in model.layers.values()]
    blocks = find_blocks(model.backbone, layers)
    numbers = [] if blocks is None else [blocks.number(layer) for layer in layers]
    start = min((n for n in numbers if n is not None), default=0)
    if budget is None or blocks is None or start == 0:
        _stores.clear()
        return None, ""
    every = f"the lower {start} of {len(blocks.modules)} blocks run every time:"
    if None in numbers:
        _stores.clear()
        return None, f"{every} an adapted layer is in none"
    above = {m for block in blocks.modules[start:] for m in block.modules()}
    drops = dropout > 0 or any(
        isinstance(m, nn.Dropout) and m.p > 0 for m in model.backbone.modules() if m not in above
    )
    dtype = next(model.backbone.parameters()).dtype
    # Two models can have the same weights and another number of heads or another activation.
    form = {k: v for k, v in model.backbone.config.to_dict().items() if k != "_name_or_path"}  # type: ignore[operator, union-attr]
    key = (weights, repr(form), str(device), torch.get_num_threads(), dtype, blocks.path, start)
    store = store_for(key, budget, on_disk) if weights else Store(Arena(budget, on_disk))
    kept = Kept(model, device, store, trains=not drops)
    model.lower = Lower(list(blocks.modules), start)
    why = _fault(kept.apart(), asked)
    if why:
        model.lower.remove()
        model.lower = None
        _stores.clear()
        return None, f"{every} {why}"
    told = f"the lower {start} of {len(blocks.modules)} blocks run once an example"
    return kept, f"{told}, but in every step with dropout" if drops else told


@torch.no_grad()
def _fault(kept: Kept, asked: Tokens) -> str:
    """Return why the model cannot be run from what is kept, or "" if it gives what all of it does."""
    model, rows = kept.model, range(len(asked.labels))
    precision, model.precision = model.precision, "fp32"
    buffers = {n: b.detach().clone() for n, b in model.named_buffers()}
    try:
        with torch.random.fork_rng(devices=[kept.device] if kept.device.type == "cuda" else []):
            drawn = torch.get_rng_state()
            assert model.lower is not None
            with model.lower.observed():
                model.backbone(**asked.batch([0], kept.device).inputs)
            for group in [[row] for row in rows] + [list(rows)]:
                inputs = asked.batch(group, kept.device).inputs
                found = model.features(inputs, kept.entering(asked, group))
                far = apart(found, model.features(inputs))
                if not far < TOLERANCE:
                    return f"from there the features differ by {far:.1e}"
            if not torch.equal(drawn, torch.get_rng_state()):
                return "the model draws random numbers"
    except Exception as error:  # whatever a model does that is not made for this
        said = (str(error).strip().splitlines() or [""])[0][:100]
        return f"{type(error).__name__}: {said}"
    finally:
        model.precision = precision
    now = dict(model.named_buffers())
    if any(n not in now or not torch.equal(b, now[n]) for n, b in buffers.items()):
        return "the model remembers what it has seen"
    return ""
