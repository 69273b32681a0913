"""DoRA: LoRA on the direction of the weight, and its magnitude apart."""

from typing import ClassVar, final

import torch
from torch import Tensor, nn

from fedsvd.adapters.adapted import NAME, Adapted, weight_of
from fedsvd.adapters.base import Parametrisation, Site
from fedsvd.adapters.initial import INITIALISERS
from fedsvd.adapters.linear import FactorLinear
from fedsvd.adapters.scale import FactorScale
from fedsvd.errors import one_of

MAGNITUDES = ("trained", "frozen", "renormalised")


@final
class Dora(Parametrisation):
    """y = m * (W + s B A) x / ||W + s B A||, the norm of each row, plus the bias; m starts at it.

    DoRA (Liu et al., ICML 2024, arXiv 2402.09353), equation 5; the norm is constant in the gradient
    as in its section 4.3. A and B are LoRA factors, on which every strategy works. `magnitude`
    "trained": m (d_out,) trains as "<layer>.magnitude" and is averaged; "frozen": m stays ||W||;
    "renormalised": m is the norm of W + s B A as each round begins (the FedSVD paper's variant), so
    nothing of it travels. `init` is a start of A as for `lora`, with B = 0.

    PEFT has DoRA, but applies A and B to an identity matrix in `forward`, from which no per-example
    gradients can be taken; an adapter is exported as PEFT's.
    """

    tensors: ClassVar[tuple[str, ...]] = ("A", "B", "magnitude")
    export: ClassVar[str] = "dora"

    def __init__(self, init: str = "kaiming", magnitude: str = "trained") -> None:
        if init not in INITIALISERS:
            raise one_of("adapter.init", init, INITIALISERS)
        if magnitude not in MAGNITUDES:
            raise one_of("adapter.magnitude", magnitude, MAGNITUDES)
        self.init, self.magnitude = init, magnitude

    def adapt(self, base: nn.Module, site: Site) -> "MagnitudeAndDirection":
        """Return the layer with factors and magnitude."""
        pair = INITIALISERS[self.init](site.weight, site.rank, site.scale, site.generator)
        return MagnitudeAndDirection(
            base, site, pair.A.to(site.weight), pair.B.to(site.weight), self.magnitude
        )


@final
class MagnitudeAndDirection(Adapted):
    """A frozen layer whose rows, plus s B A, are rescaled to the length m."""

    def __init__(self, base: nn.Module, site: Site, A: Tensor, B: Tensor, magnitude: str) -> None:
        super().__init__(base, site.scale, site.dropout)
        self.lora_A = nn.ModuleDict({NAME: FactorLinear.of(A)})
        self.lora_B = nn.ModuleDict({NAME: FactorLinear.of(B)})
        self.kind = magnitude
        self.magnitude = FactorScale(weight_of(base).norm(dim=1))
        self.magnitude.weight.requires_grad_(magnitude == "trained")

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the magnitude, if it trains."""
        return {"magnitude": self.magnitude.weight} if self.kind == "trained" else {}

    def update(self, x: Tensor) -> Tensor:
        """Return B A x."""
        out: Tensor = self.lora_B[NAME](self.lora_A[NAME](x))
        return out

    def forward(self, x: Tensor) -> Tensor:
        """Return m * (W + s B A) x / norm, plus the bias."""
        bias = self.base_layer.bias
        plain = nn.functional.linear(x, weight_of(self.base_layer))
        moved = plain + self.scaling[NAME] * self.update(self.dropout(x)).to(plain.dtype)
        # Scaled in the magnitude's precision, so that its own gradient is exact.
        out = self.magnitude(moved.to(self.magnitude.weight.dtype) / self.norm()).to(plain.dtype)
        return out if bias is None else out + bias

    @torch.no_grad()
    def norm(self) -> Tensor:
        """Return the length (d_out,) of every row of W + s B A.

        ||w + s b A||^2 = ||w||^2 + 2 s b (A w) + s^2 b (A A^T) b^T would lose digits; the rows are
        formed, which costs as much as r tokens.
        """
        with torch.autocast(self.magnitude.weight.device.type, enabled=False):
            return self._direction().norm(dim=1)

    def _direction(self) -> Tensor:
        A, B = self.lora_A[NAME].weight, self.lora_B[NAME].weight
        return weight_of(self.base_layer) + self.scaling[NAME] * (B @ A)  # type: ignore[operator]

    @torch.no_grad()
    def renormalise(self) -> None:
        """Set m to the norm of the rows as they are, where it is derived."""
        if self.kind == "renormalised":
            self.magnitude.weight.copy_(self.norm())

    @torch.no_grad()
    def merged(self) -> Tensor:
        """Return m * (W + s B A) / norm."""
        return (self.magnitude.weight / self.norm())[:, None] * self._direction()
