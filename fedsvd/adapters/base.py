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
    """Statistics of a layer's inputs x on public texts, over all tokens but padding.

    Attributes:
        moment: E[x x^T], (d_in, d_in), float64.
        mean: E[x], (d_in,), float64.
        tokens: the number of tokens.
    """

    moment: Tensor
    mean: Tensor
    tokens: int


@dataclass(frozen=True)
class Site:
    """One frozen linear layer that is to be adapted.

    Attributes:
        name: its path in the backbone.
        weight: (d_out, d_in), on the layer's device, also where the layer stores it transposed.
        rank: that of the settings; with `adapter.rank=null` the largest that the weight allows.
        alpha: the numerator of the scale.
        generator: a CPU generator of its own, the stream (seed, "adapter", name).
        dropout: the rate of the adapter's dropout.
        inputs: its inputs on public texts, for an adapter with `needs_inputs`.
        rslora: whether the scale is that of rsLoRA.
        gradient: dL/dW (d_out, d_in), float64, for an adapter with `needs_gradients`. It is the mean
            over public texts with labels, at the pretrained weights and the head's start.
        common: what `Adapter.common` gave its group.
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

    What trains determines the first step of plain gradient descent. Let G be the gradient of the loss
    in the weight. To first order in the rate, and over that rate, the weight moves by

    - "factors": -s^2 (G A^T A + B B^T G), for B A with A = S^a V^T and B = U S^b, which both train;
    - "core": -s^2 B B^T G A^T A, for B R A with the same A and B;
    - "values": -U diag(U^T G V) V^T, for U diag(sigma) V^T, where sigma trains;
    - "triplets": -(G V S^2 V^T + U diag(U^T G V) V^T + U S^2 U^T G), for U diag(S) V^T, where all
      three train.

    `fedsvd.testing.check_adapter` measures that step.

    Attributes:
        part: the "leading" or the "last" r triplets.
        trains: "factors", "core", "values" or "triplets".
        a: the power of S in A.
        b: the power of S in B.
        divided: whether S is divided by the scale s.
    """

    part: str
    trains: str
    a: float = 0.0
    b: float = 0.0
    divided: bool = False


class Adapter:
    """How the targeted layers of a backbone get what trains.

    `adapter=NAME` or `adapter._target_=package.Class` chooses it. The arguments of its constructor
    come from the other keys of the group. Everything that it makes follows from the frozen weights,
    a layer's generator and public texts. So every client makes the same, and none of it travels.

    Class attributes declare what it is. `fedsvd.testing.check_adapter` measures them. A constructor
    may set one that depends on its options.
    """

    tensors: ClassVar[tuple[str, ...]] = ("A", "B")
    """What travels of a layer, by the last parts of its names.

    "A" and "B" are LoRA factors, on which strategies work. Everything else is averaged as it is.
    """

    absorbs: bool = False
    """Whether the factors start with part of the frozen weight in them (B A != 0)."""

    preserves: bool = True
    """Whether the model computes at first what the pretrained one does."""

    needs_inputs: bool = False
    """Whether it uses activations of public texts."""

    needs_gradients: bool = False
    """Whether it uses gradients of the loss on public texts with labels."""

    group: int = 1
    """How many adjacent layers of one kind and shape it takes together, targeted or not."""

    one_A: bool = False
    """Whether the layers of a group hold one A, so that it must not train layer by layer."""

    export: ClassVar[str] = "lora"
    """How `adapter/` is written: as LoRA factors, as PEFT's DoRA, or as a merged model."""

    spectrum: Spectrum | None = None
    """What the start holds of the frozen weight's singular triplets, if that is its formula."""

    chooses_rank: ClassVar[bool] = False
    """Whether it chooses the rank of a layer itself where `adapter.rank` is null."""

    def common(self, sites: Sequence[Site]) -> Any:
        """Return what the layers of a group share; called once for a group if `group` is above 1.

        `sites` are all layers of the group in the backbone's order. The result is their
        `Site.common`.
        """
        return None


class Initialiser(Adapter, ABC):
    """An adapter whose layers are LoRA layers, W + s B A; it determines where A and B start."""

    @abstractmethod
    def factors(self, site: Site) -> LowRank:
        """Return A (r, d_in) and B (d_out, r), of any floating dtype, on any device."""

    def residual(self, site: Site, pair: LowRank) -> Tensor:
        """Return the new frozen weight (d_out, d_in): W, or W - s B A if the adapter `absorbs`."""
        if not self.absorbs:
            return site.weight
        return site.weight - (site.scale * pair.product()).to(site.weight)


class Parametrisation(Adapter, ABC):
    """An adapter whose layers are modules of their own."""

    decoupled: ClassVar[bool] = False
    """Whether the penalty's gradient moves the weights by itself, times lr_t / lr_0.

    The size of the learning rate lr_0 then does not matter. Otherwise the penalty is a part of the
    loss, and lr_t multiplies its gradient as that of the data.
    """

    @abstractmethod
    def adapt(self, base: nn.Module, site: Site) -> Adapted:
        """Return the module that takes the place of `base`, which it holds and may change."""

    def penalty(self, layers: Sequence[Adapted]) -> Tensor | None:
        """Return a differentiable scalar that depends on parameters alone, or None.

        It must not depend on examples: its gradient acts after clipping and noise, see `decoupled`.
        """
        return None
