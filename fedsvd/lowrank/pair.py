"""The two nouns of the algebra: the factors of one layer, and the factors of a model."""

import hashlib
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field, replace

import torch
from torch import Tensor


@dataclass(frozen=True)
class LowRank:
    """The factors of one layer's update B A.

    A: (r, d_in) and B: (d_out, r), of one floating dtype and on one device. The scale s = alpha / r
    of the adapter is not part of it.
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
    """All that is trained: layer name to factors in a fixed order, plus named tensors beside them.

    `extra` holds what trains beside them (the classification head's "head.weight", "head.bias").
    `round` counts the aggregations that led to this state; 0 is the initial one.
    It is what travels, what strategies transform, what is checkpointed and exported.
    """

    factors: Mapping[str, LowRank]
    extra: Mapping[str, Tensor] = field(default_factory=dict)
    round: int = 0

    @staticmethod
    def from_tensors(tensors: Mapping[str, Tensor], round: int = 0) -> "AdapterState":
        """Return the state whose `tensors()` are these, in their order."""
        layers = [name[:-2] for name in tensors if name.endswith(".A")]
        factors = {k: LowRank(tensors[f"{k}.A"], tensors[f"{k}.B"]) for k in layers}
        extra = {name: t for name, t in tensors.items() if kind_of(name) == "extra"}
        return AdapterState(factors, extra, round)

    def tensors(self) -> dict[str, Tensor]:
        """Return every tensor by name: "<layer>.A", "<layer>.B" and the names in `extra`."""
        named: dict[str, Tensor] = {}
        for layer, pair in self.factors.items():
            named[f"{layer}.A"] = pair.A
            named[f"{layer}.B"] = pair.B
        named.update(self.extra)
        return named

    def select(self, kinds: Iterable[str]) -> dict[str, Tensor]:
        """Return the tensors of the given kinds, a subset of {"A", "B", "extra"}, by name."""
        wanted = set(kinds)
        return {name: t for name, t in self.tensors().items() if kind_of(name) in wanted}

    def update(self, tensors: Mapping[str, Tensor]) -> "AdapterState":
        """Return this state with the named tensors replaced.

        Raises KeyError for a name that the state does not have.
        """
        unknown = set(tensors) - set(self.tensors())
        if unknown:
            raise KeyError(f"no tensor named {sorted(unknown)[0]!r} in this state")
        factors = {
            layer: LowRank(tensors.get(f"{layer}.A", pair.A), tensors.get(f"{layer}.B", pair.B))
            for layer, pair in self.factors.items()
        }
        extra = {name: tensors.get(name, value) for name, value in self.extra.items()}
        return replace(self, factors=factors, extra=extra)

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


def kind_of(name: str) -> str:
    """Return "A" or "B" for the name of a factor, "extra" for any other tensor's."""
    suffix = name[-2:]
    return suffix[1] if suffix in (".A", ".B") else "extra"
