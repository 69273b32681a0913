"""What an adapter is: how a frozen linear layer gets what trains.

An `Initialiser` gives a layer LoRA factors: it writes one method, `factors(site) -> LowRank`. A
`Parametrisation` puts a module of its own in the layer's place.
"""

import math
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
    on the layer's device. rank: the settings'; with `adapter.rank=null` the largest that the weight
    allows. generator: a CPU generator of its own, the stream (seed, "adapter", name). inputs: what it
    sees of public texts, for an adapter with `needs_inputs`. rslora: whether the scale is rsLoRA's.
    gradient: dL/dW (d_out, d_in), float64, for one with `needs_gradients`: the mean over public texts
    with labels, at the pretrained weights and the head's start. common: what `Adapter.common` gave
    its group.
    """

    name: str
    weight: Tensor
    rank: int
    alpha: float
    generator: Generator
    dropout: float = 0.0
    inputs: Inputs | None = None
    rslora: bool = False
    gradient: Tensor | None = None
    common: Any = None

    @property
    def scale(self) -> float:
        """The scale s of the update: alpha / r, or alpha / sqrt r with `rslora`.

        The second is rsLoRA's (Kalajdzievski, 2023, arXiv 2312.03732), PEFT's `use_rslora`.
        """
        return self.alpha / (math.sqrt(self.rank) if self.rslora else self.rank)


@dataclass(frozen=True)
class Spectrum:
    """How a start holds singular triplets U, S, V of the frozen weight W.

    `part`: the "leading" or the "last" r of them. `trains` says what moves, and with it the first
    step of plain gradient descent on a loss of gradient G in the weight, to first order in its rate,
    over that rate:

    - "factors": B A with A = S^a V^T and B = U S^b, S divided by s where `divided`: both train, and
      the weight moves by -s^2 (G A^T A + B B^T G);
    - "core": B R A with the same A and B: -s^2 B B^T G A^T A;
    - "values": U diag(sigma) V^T, sigma trains: -U diag(U^T G V) V^T;
    - "triplets": U diag(S) V^T, all three train: -(G V S^2 V^T + U diag(U^T G V) V^T + U S^2 U^T G).

    `fedsvd.testing.check_adapter` measures that step.
    """

    part: str
    trains: str
    a: float = 0.0
    b: float = 0.0
    divided: bool = False


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
    # What the start holds of the frozen weight's singular triplets, if that is its formula.
    spectrum: Spectrum | None = None
    # Whether it chooses the rank of a layer itself where `adapter.rank` is null.
    chooses_rank: ClassVar[bool] = False

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

    # Whether the penalty's gradient moves the weights by itself, times lr_t / lr_0, whatever the size
    # of the learning rate lr_0; otherwise the penalty is a part of the loss and its gradient is
    # multiplied by lr_t as that of the data is.
    decoupled: ClassVar[bool] = False

    @abstractmethod
    def adapt(self, base: nn.Module, site: Site) -> Adapted:
        """Return the module that takes the place of `base`, which it holds and may change."""

    def penalty(self, layers: Sequence[Adapted]) -> Tensor | None:
        """Return a differentiable scalar that depends on parameters alone, or None.

        It looks at no example: its gradient acts after clipping and noise, as `decoupled` says.
        """
        return None
