"""What an adapter is: how a frozen linear layer gets what trains.

An `Initialiser` gives a layer LoRA factors: it writes one method, `factors(site) -> LowRank`. A
`Parametrisation` puts a module of its own in the layer's place.
"""

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

from torch import Generator, Tensor, nn

from fedsvd.adapters.adapted import Adapted
from fedsvd.lowrank import LowRank


@dataclass(frozen=True)
class Inputs:
    """What a layer sees of public texts: over all tokens, E[x x^T] (d_in, d_in) and E[x] (d_in,).

    Both float64. Tokens of padding do not count.
    """

    moment: Tensor
    mean: Tensor
    tokens: int


@dataclass(frozen=True)
class Site:
    """One frozen linear layer that is to be adapted.

    name: its path in the backbone. weight: (d_out, d_in), also where the layer stores it transposed,
    on the layer's device. generator: a CPU generator of its own, the stream (seed, "adapter", name).
    inputs: what it sees of public texts, for an adapter with `needs_inputs`. gradient: dL/dW
    (d_out, d_in), float64, for one with `needs_gradients`: the mean over public texts with labels, at
    the pretrained weights and the head's start. common: what `Adapter.common` gave its group.
    """

    name: str
    weight: Tensor
    rank: int
    alpha: float
    generator: Generator
    dropout: float = 0.0
    inputs: Inputs | None = None
    gradient: Tensor | None = None
    common: Any = None

    @property
    def scale(self) -> float:
        """The scale s = alpha / r of the update."""
        return self.alpha / self.rank


class Adapter:
    """How the targeted layers of a backbone get what trains.

    It is chosen by `adapter=NAME` or `adapter._target_=package.Class`; arguments of its constructor
    come from the other keys of the group. Everything that it makes follows from the frozen weights,
    a layer's generator and public texts, so that every client makes the same and none of it travels.
    """

    # Declarations, measured by `fedsvd.testing.check_adapter`; a constructor may set one that depends
    # on its options.
    # What travels of a layer, by the last parts of its names. "A" and "B" are LoRA factors, on which
    # strategies work; all else is averaged as it is.
    tensors: ClassVar[tuple[str, ...]] = ("A", "B")
    # Whether the factors start with part of the frozen weight in them (B A != 0).
    absorbs: bool = False
    # Whether the model computes at first what the pretrained one does.
    preserves: bool = True
    # Whether it looks at activations of public texts.
    needs_inputs: bool = False
    # Whether it looks at gradients of the loss on public texts with labels.
    needs_gradients: bool = False
    # How many adjacent layers of one kind and shape it looks at together, targeted or not.
    group: int = 1
    # Whether the layers of a group hold one A, so that it must not train layer by layer.
    one_A: bool = False
    # How `adapter/` is written: as LoRA factors, as PEFT's DoRA, or as a merged model.
    export: ClassVar[str] = "lora"

    def common(self, sites: Sequence[Site]) -> Any:
        """Return what the layers of a group share; asked once a group, where `group` is above 1.

        `sites` are all of its layers in the backbone's order. The result is their `Site.common`.
        """
        return None


class Initialiser(Adapter, ABC):
    """An adapter whose layers are LoRA layers, W + s B A; it says where A and B start."""

    @abstractmethod
    def factors(self, site: Site) -> LowRank:
        """Return A (r, d_in) and B (d_out, r), of any floating dtype, on any device."""

    def residual(self, site: Site, pair: LowRank) -> Tensor:
        """Return what becomes of the frozen weight (d_out, d_in): W, or W - s B A if it `absorbs`."""
        if not self.absorbs:
            return site.weight
        return site.weight - (site.scale * pair.product()).to(site.weight)


class Parametrisation(Adapter, ABC):
    """An adapter whose layers are modules of their own."""

    @abstractmethod
    def adapt(self, base: nn.Module, site: Site) -> Adapted:
        """Return the module that takes the place of `base`, which it holds and may change."""

    def penalty(self, layers: Sequence[Adapted]) -> Tensor | None:
        """Return a differentiable scalar that depends on parameters alone, or None.

        Its gradient is added to the step after clipping and noise: it looks at no example.
        """
        return None
