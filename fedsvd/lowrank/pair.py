"""The two nouns of the algebra: the factors of one layer, and the factors of a model."""

import functools
import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """The factors of one layer's update B A.

    A and B have one floating dtype and are on one device. The scale s = alpha / r of the adapter is
    not part of it. Raises ValueError for other shapes.

    Attributes:
        A: (r, d_in).
        B: (d_out, r).
    """

    A: Tensor
    B: Tensor

    def __post_init__(self) -> None:
        if self.A.ndim != 2 or self.B.ndim != 2 or self.A.shape[0] != self.B.shape[1]:
            raise ValueError(
                f"A must be (r, d_in) and B (d_out, r); got {tuple(self.A.shape)} "
                f"and {tuple(self.B.shape)}"
            )

    @property
    def rank(self) -> int:
        """The number r of rows of A and columns of B."""
        return self.A.shape[0]

    def product(self) -> Tensor:
        """Return B A as a dense (d_out, d_in) matrix; for tests and exports, never in a round."""
        return self.B @ self.A


@dataclass(frozen=True)
class AdapterState:
    """Everything that is trained. It is what travels, what strategies transform, what is exported.

    Attributes:
        factors: the factors of each layer, by its name, in a fixed order.
        extra: what trains beside them (the classification head's "head.weight", "head.bias").
        round: the number of aggregations that led to this state; 0 is the initial one.
        base: a dense update W (d_out, d_in) for each layer whose frozen weight a method has changed.
            Such a layer computes with W0 + s (W + B A), s = alpha / r.
        memory: what a server optimiser or a strategy remembers; it stays at the server.
    """

    factors: Mapping[str, LowRank]
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    round: int = 0
    base: Mapping[str, Tensor] = field(default_factory=dict)
    memory: Mapping[str, Tensor] = field(default_factory=dict)

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], round: int = 0) -> "AdapterState":
        """Return the state whose `tensors()` are these, in their order."""
        of: dict[str, dict[str, Tensor]] = {kind: {} for kind in KINDS}
        for name, tensor in tensors.items():
            of[kind_of(name)][name] = tensor
        factors = {name[:-2]: LowRank(A, of["B"][f"{name[:-2]}.B"]) for name, A in of["A"].items()}
        base = {name[:-2]: W for name, W in of["W"].items()}
        memory = {name.removeprefix(MEMORY): t for name, t in of["memory"].items()}
        return AdapterState(factors, of["extra"], round, base, memory)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name: "<layer>.A", "<layer>.B", the names in `extra`, and, where
        there are any, "<layer>.W" and "memory.<name>".
        """
        named: dict[str, Tensor] = {}
        for layer, pair in self.factors.items():
            named[f"{layer}.A"] = pair.A
            named[f"{layer}.B"] = pair.B
        named.update(self.extra)
        named.update({f"{layer}.W": W for layer, W in self.base.items()})
        named.update({f"{MEMORY}{name}": t for name, t in self.memory.items()})
        return named

    def select(self, kinds: Iterable[str]) -> dict[str, Tensor]:
        """Return the tensors of the given kinds, a subset of `KINDS`, by name."""
        wanted = set(kinds)
        return {name: t for name, t in self.tensors().items() if kind_of(name) in wanted}

    def update(self, tensors: Mapping[str, Tensor]) -> "AdapterState":
        """Return this state with the named tensors replaced.

        A layer's W and memory may be new; raises KeyError for any other name it does not have.
        """
        had = self.tensors()
        for name in tensors:
            if name in had or kind_of(name) == "memory":
                continue
            if kind_of(name) != "W" or name[:-2] not in self.factors:
                raise KeyError(f"no tensor named {name!r} in this state")
        return AdapterState.from_tensors({**had, **tensors}, self.round)

    def to(self, device: torch.device | str) -> "AdapterState":
        """Return this state with every tensor on `device`."""
        return self.update({name: t.to(device) for name, t in self.tensors().items()})

    def digest(self) -> str:
        """Return the SHA-256 over names, shapes, dtypes and bytes of all tensors, in hex."""
        sha = hashlib.sha256()
        for name, tensor in sorted(self.tensors().items()):
            array = tensor.detach().cpu().contiguous().numpy()
            sha.update(f"{name}|{array.shape}|{array.dtype}|".encode())
            sha.update(array.tobytes())
        return sha.hexdigest()


MEMORY = "memory."
KINDS = ("A", "B", "extra", "W", "memory")
SUFFIXES = {".A": "A", ".B": "B", ".W": "W"}


@functools.lru_cache(maxsize=2**14)
def kind_of(name: str) -> str:
    """Return which of `KINDS` a tensor is, by its name."""
    if name.startswith(MEMORY):
        return "memory"
    return SUFFIXES.get(name[-2:], "extra")
