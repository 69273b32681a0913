"""Updates that are sums of Kronecker products, and their hypercomplex form."""

from typing import ClassVar, final

import torch
from torch import Tensor, nn

from fedsvd.adapters.adapted import Adapted
from fedsvd.adapters.base import Parametrisation, Site
from fedsvd.adapters.linear import FactorLinear
from fedsvd.adapters.scale import FactorMix
from fedsvd.errors import InputError, one_of, wrong
from fedsvd.lowrank import LowRank

ALGEBRAS = ("learned", "complex", "quaternion")
# Hamilton's product as matrices: entry (p, q) of unit i is the sign with which q contributes to p.
QUATERNION = (
    ((1, 0, 0, 0), (0, 1, 0, 0), (0, 0, 1, 0), (0, 0, 0, 1)),
    ((0, -1, 0, 0), (1, 0, 0, 0), (0, 0, 0, -1), (0, 0, 1, 0)),
    ((0, 0, -1, 0), (0, 0, 0, 1), (1, 0, 0, 0), (0, -1, 0, 0)),
    ((0, 0, 0, -1), (0, 0, -1, 0), (0, 1, 0, 0), (1, 0, 0, 0)),
)
COMPLEX = (((1, 0), (0, 1)), ((0, -1), (1, 0)))


@final
class Kronecker(Parametrisation):
    """W + s sum_i C_i (x) (B_i A_i), i = 1..n; C_i (n, n), B_i (d_out / n, r), A_i (r, d_in / n).

    Parametrised hypercomplex multiplication (Zhang et al., ICLR 2021) with low-rank right factors, as
    in Compacter (Karimi Mahabadi et al., NeurIPS 2021, arXiv 2106.04647). `algebra`
    "learned": the C_i train too, one set a layer; "quaternion" (n = 4) or "complex" (n = 2): they
    are the fixed multiplication tables. A is Kaiming-uniform, B = 0, learned C ~ N(0, 1 / n). The
    update's rank is up to n^2 r with r (d_in + d_out) + n^3 parameters: "<layer>.down" (n r, d_in /
    n), "<layer>.up" (d_out / n, n r) and "<layer>.C" (n, n, n).
    """

    tensors: ClassVar[tuple[str, ...]] = ("down", "up", "C")

    def __init__(self, terms: int = 4, algebra: str = "learned") -> None:
        if algebra not in ALGEBRAS:
            raise one_of("adapter.algebra", algebra, ALGEBRAS)
        needed = {"complex": 2, "quaternion": 4}.get(algebra, terms)
        if terms < 1 or terms != needed:
            allowed = f"{needed} with adapter.algebra={algebra}" if terms >= 1 else "at least 1"
            raise wrong("adapter.terms", terms, allowed)
        self.terms, self.algebra = terms, algebra

    def adapt(self, base: nn.Module, site: Site) -> "KroneckerSum":
        """Return the layer with its sum of Kronecker products."""
        n, r, (d_out, d_in) = self.terms, site.rank, site.weight.shape
        if d_out % n or d_in % n:
            raise InputError(f"adapter.terms: {n} does not divide both sizes of {site.name} "
                             f"({d_out} x {d_in})")  # fmt: skip
        down = torch.empty(n * r, d_in // n)
        down.uniform_(-1, 1, generator=site.generator).div_((d_in // n) ** 0.5)
        C = torch.randn(n, n, n, generator=site.generator) / n**0.5
        if self.algebra != "learned":
            C = torch.tensor(QUATERNION if n == 4 else COMPLEX, dtype=torch.float32)
        up = torch.zeros(d_out // n, n * r)
        return KroneckerSum(
            base, site, down.to(site.weight), up.to(site.weight), C.to(site.weight),
            self.algebra == "learned",
        )  # fmt: skip


@final
class KroneckerSum(Adapted):
    """A frozen layer plus s sum_i C_i (x) (B_i A_i), never formed."""

    def __init__(
        self, base: nn.Module, site: Site, down: Tensor, up: Tensor, C: Tensor, learned: bool
    ) -> None:
        super().__init__(base, site.scale, site.dropout)
        self.rank, self.learned = site.rank, learned
        self.down, self.up, self.mix = FactorLinear.of(down), FactorLinear.of(up), FactorMix(C)
        self.mix.weight.requires_grad_(learned)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return the stacked A_i and B_i, and C if it is learned."""
        named = {"down": self.down.weight, "up": self.up.weight}
        return {**named, "C": self.mix.weight} if self.learned else named

    def update(self, x: Tensor) -> Tensor:
        """Return the sum applied to x (..., d_in): a block at a time through A, C, then B."""
        n = len(self.mix.weight)
        low = self.down(x.unflatten(-1, (n, -1))).unflatten(-1, (n, self.rank))
        out: Tensor = self.up(self.mix(low).flatten(-2)).flatten(-2)
        return out

    def change(self) -> LowRank:
        """Return factors of rank n^2 r: C_i (x) (B_i A_i) = (C_i (x) B_i) (I (x) A_i)."""
        n, C = len(self.mix.weight), self.mix.weight
        eye = torch.eye(n, dtype=C.dtype, device=C.device)
        down = self.down.weight.unflatten(0, (n, self.rank))
        up = self.up.weight.unflatten(1, (n, self.rank))
        A = torch.cat([torch.kron(eye, down[i].contiguous()) for i in range(n)])
        B = torch.cat([torch.kron(C[i], up[:, i].contiguous()) for i in range(n)], dim=1)
        return LowRank(A, B)
