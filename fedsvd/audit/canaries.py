"""Canaries of a client: examples with gradients of their own, in its data or not by a fair coin."""

import math
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from fedsvd.audit.mechanism import SIZE
from fedsvd.privacy.clipping import STABILITY
from fedsvd.randomness import Purpose, numpy_stream, torch_stream

MOST_COORDINATES = 8192  # in which canaries live: 2,000 directions are 65 MB
SMALLEST = 64  # entries of a tensor that carries canaries, unless all are smaller


@dataclass(frozen=True)
class Layout:
    """The tensors that clients train and send, flattened one after another."""

    names: tuple[str, ...]
    shapes: tuple[torch.Size, ...]

    @property
    def size(self) -> int:
        """The number of entries."""
        return sum(s.numel() for s in self.shapes)

    def starts(self) -> list[int]:
        """Return where each tensor begins, and the end."""
        return [0, *np.cumsum([s.numel() for s in self.shapes]).tolist()]

    def flat(self, tensors: dict[str, Tensor]) -> tuple[Tensor, Tensor]:
        """Return tensors as one vector (size,) and which of its entries they cover, (size,) bool.

        One that is missing covers nothing, one of a lower rank the corner that it has.
        """
        device = next(iter(tensors.values())).device
        values, covers = torch.zeros(self.size, device=device), torch.zeros(self.size, dtype=bool)  # type: ignore[call-overload]
        for name, shape, start in zip(self.names, self.shapes, self.starts(), strict=False):
            if name in tensors:
                corner = tuple(slice(n) for n in tensors[name].shape)
                stop = start + shape.numel()
                values[start:stop].view(shape)[corner] = tensors[name]
                covers[start:stop].view(shape)[corner] = True
        return values, covers.to(device)

    def tensors(self, rows: Tensor) -> dict[str, Tensor]:
        """Return flat rows (n, size) as tensors (n, *shape) by name."""
        parts = rows.split([s.numel() for s in self.shapes], dim=1)
        return {
            name: part.reshape(len(rows), *shape)
            for name, shape, part in zip(self.names, self.shapes, parts, strict=True)
        }


@dataclass(frozen=True)
class Canaries:
    """One client's canaries.

    rows (m,): their ids as examples; inside (m,) bool: whether the client has them; directions
    (m, D): orthonormal; at (D,): the entries of the layout where they live; tensor (D,): of which
    tensor.
    """

    client: int
    rows: np.ndarray
    inside: np.ndarray
    directions: Tensor
    at: Tensor
    tensor: Tensor

    def gradients(self, which: Tensor, layout: Layout, clip: float) -> dict[str, Tensor]:
        """Return the gradients of some canaries, each of norm SIZE * clip, by tensor."""
        flat = self.directions.new_zeros(len(which), layout.size)
        flat[:, self.at] = self.directions[which] * (SIZE * clip)
        return layout.tensors(flat)

    def contributions(
        self, kind: str, clip: float, trains: Tensor, sent: Tensor, tensors: int
    ) -> Tensor:
        """Return what each canary adds to a step's sum in what is sent, in clips, (m, D).

        `trains` and `sent` (size,) say which entries of the layout train and are sent, `tensors` how
        many tensors are clipped together. This is the rule of docs/privacy.md, written a second time.
        """
        g = self.directions * SIZE * trains[self.at]
        if kind == "per_layer":
            limit = 1 / math.sqrt(tensors)
            share = torch.ones_like(g)
            for t in self.tensor.unique().tolist():
                of = self.tensor == t
                norm = g[:, of].norm(dim=1, keepdim=True)
                share[:, of] = (limit / norm.clamp(min=1e-30)).clamp(max=1.0)
        else:
            norm = g.norm(dim=1, keepdim=True)
            if kind == "automatic":
                share = 1 / (norm + STABILITY / clip)
            else:
                share = (1 / norm.clamp(min=1e-30)).clamp(max=1.0)
        return g * share * sent[self.at]


def make_canaries(
    layout: Layout, client: int, number: int, first: int, seed: int, device: torch.device
) -> Canaries:
    """Return up to `number` canaries of a client; fewer where the layout has no room for them.

    Directions are the rows of a random orthonormal matrix over entries drawn at random, so that one
    canary's score does not hear of another's. `first` is the id of the first.
    """
    generator = torch_stream(seed, Purpose.AUDIT, client)
    large = [s.numel() >= SMALLEST for s in layout.shapes]
    counts = [s.numel() if fits or not any(large) else 0 for s, fits in zip(layout.shapes, large,
                                                                           strict=True)]  # fmt: skip
    carries = torch.cat([
        torch.full((s.numel(),), bool(n)) for s, n in zip(layout.shapes, counts, strict=True)
    ])  # fmt: skip
    places = carries.nonzero().flatten()
    chosen = places[torch.randperm(len(places), generator=generator)[:MOST_COORDINATES]]
    at = chosen.sort().values
    m = max(1, min(number, len(at) // 2))
    directions = torch.linalg.qr(torch.randn(len(at), m, generator=generator)).Q.mT.contiguous()
    ends = torch.tensor(layout.starts()[1:])
    coins = numpy_stream(seed, Purpose.AUDIT, client, "coins").random(m) < 0.5
    return Canaries(
        client, first + np.arange(m), coins, directions.to(device), at.to(device),
        torch.searchsorted(ends, at, right=True).to(device),
    )  # fmt: skip
