"""Cayley: the rows of A stay orthonormal while they train."""

from typing import ClassVar, final

import torch
from opacus.grad_sample import register_grad_sampler
from torch import Tensor, nn

from fedsvd.adapters.adapted import Adapted
from fedsvd.adapters.base import Parametrisation, Site
from fedsvd.adapters.initial import orthonormal
from fedsvd.adapters.linear import FactorLinear, let_gradient_hooks_fire
from fedsvd.lowrank import LowRank


@final
class Cayley(Parametrisation):
    """W + s B A(X) with A(X) = A_0 (I - K / 2) (I + K / 2)^-1 and K = X^T A_0 - A_0^T X skew.

    To first order A(X) = A_0 + X - A_0 X^T A_0. The Cayley transform of a skew matrix is orthogonal,
    so the rows of A(X) are orthonormal for every X (r, d_in), also for a noised one and for the mean
    of the clients' X (Wen and Yin, Mathematical Programming 2013, in the low-rank form of their
    lemma 4). A_0 is the `orthonormal` start of `lora`, fixed and derived; X starts at 0 and trains as
    "<layer>.X", B at 0 as "<layer>.up". Under privacy the gradient of each example goes through the
    map before it is clipped.
    """

    tensors: ClassVar[tuple[str, ...]] = ("X", "up")

    def adapt(self, base: nn.Module, site: Site) -> "OrthonormalRows":
        """Return the layer with A_0, X = 0 and B = 0."""
        pair = orthonormal(site.weight, site.rank, site.scale, site.generator)
        return OrthonormalRows(base, site, pair.A.to(site.weight), pair.B.to(site.weight))


@final
class OrthonormalRows(Adapted):
    """A frozen layer plus s B A(X); X and B train."""

    def __init__(self, base: nn.Module, site: Site, A: Tensor, B: Tensor) -> None:
        super().__init__(base, site.scale, site.dropout)
        self.rows, self.up = CayleyLinear(A), FactorLinear.of(B)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return X and B."""
        return {"X": self.rows.weight, "up": self.up.weight}

    def update(self, x: Tensor) -> Tensor:
        """Return B A(X) x."""
        out: Tensor = self.up(self.rows(x))
        return out

    def change(self) -> LowRank:
        """Return (A(X), B)."""
        return LowRank(cayley(self.rows.weight, self.rows.start), self.up.weight)


@final
class CayleyLinear(nn.Module):
    """y = A(X) x, with orthonormal rows A(X) (r, d_in) for every trained X (r, d_in)."""

    start: Tensor

    def __init__(self, start: Tensor) -> None:
        super().__init__()
        self.register_buffer("start", start.contiguous(), persistent=False)
        self.weight = nn.Parameter(torch.zeros_like(start))
        self.register_forward_pre_hook(let_gradient_hooks_fire)

    def forward(self, x: Tensor) -> Tensor:
        """Return A(X) x, (..., r)."""
        with torch.autocast(x.device.type, enabled=False):
            A = cayley(self.weight, self.start)
        return nn.functional.linear(x, A)


def cayley(X: Tensor, A0: Tensor) -> Tensor:
    """Return A_0 (I - K / 2) (I + K / 2)^-1, (r, d), for K = X^T A_0 - A_0^T X.

    With K = P Q, P = [X^T, -A_0^T] (d, 2r) and Q = [A_0; X] (2r, d), the map is A_0 (I - P (I + Q P /
    2)^-1 Q): one system of size 2r, whatever d is.
    """
    P, Q = torch.cat([X, -A0]).mT, torch.cat([A0, X])
    core = torch.eye(len(Q), dtype=X.dtype, device=X.device) + Q @ P / 2
    return A0 - (A0 @ P) @ torch.linalg.solve(core, Q)


@register_grad_sampler(CayleyLinear)
def cayley_grad_sample(
    layer: CayleyLinear, activations: list[Tensor], backprops: Tensor
) -> dict[Tensor, Tensor]:
    """Return the gradient of every example, (n, r, d_in): that of A(X), through the map."""
    dtype = layer.weight.dtype
    x, g = activations[0].to(dtype), backprops.to(dtype)
    of_A = g.reshape(len(g), -1, g.shape[-1]).mT @ x.reshape(len(x), -1, x.shape[-1])
    with torch.autocast(x.device.type, enabled=False), torch.enable_grad():
        pull = torch.func.vjp(lambda X: cayley(X, layer.start), layer.weight.detach())[1]
        (grads,) = torch.func.vmap(pull)(of_A)
    return {layer.weight: grads}
