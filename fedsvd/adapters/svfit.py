"""SVFit: only the leading singular values train."""

from typing import ClassVar, final

from torch import Tensor, nn

from fedsvd.adapters.adapted import Adapted, set_weight
from fedsvd.adapters.base import Parametrisation, Site, Spectrum
from fedsvd.adapters.scale import FactorScale
from fedsvd.adapters.triplets import leading
from fedsvd.errors import wrong
from fedsvd.lowrank import LowRank, subspace


@final
class SVFit(Parametrisation):
    """W = U_r diag(sigma) V_r^T + residual; only sigma (r,) trains, as "<layer>.sigma".

    SVFit (Sun et al., 2024, arXiv 2409.05926): r is the least number of leading singular values whose
    squares hold `energy` (0.99) of the sum of all, and at most `adapter.rank`, which is null (no
    bound) in its configuration. A fixed rank is a number there with `energy` null. U, V and the
    residual are fixed and derived from the pretrained weight. There is no scale: alpha is not used.
    """

    tensors: ClassVar[tuple[str, ...]] = ("sigma",)
    chooses_rank: ClassVar[bool] = True

    def __init__(self, energy: float | None = 0.99) -> None:
        if energy is not None and not 0 < energy <= 1:
            raise wrong("adapter.energy", energy, "in (0, 1], or null (adapter.rank values)")
        self.energy = energy
        self.spectrum = Spectrum("leading", "values") if energy is None else None

    def adapt(self, base: nn.Module, site: Site) -> "SingularValues":
        """Return the layer with its leading singular values apart."""
        U, S, Vh = leading(site.weight, min(site.weight.shape))
        r = site.rank
        if self.energy is not None:
            r = min(r, subspace.leading(S, self.energy))
        U, S, Vh = U[:, :r], S[:r], Vh[:r]
        set_weight(base, (site.weight.double() - (U * S) @ Vh).to(site.weight))
        return SingularValues(base, site, U.to(site.weight), S.to(site.weight), Vh.to(site.weight))


@final
class SingularValues(Adapted):
    """A residual layer plus U diag(sigma) V^T, of which sigma trains."""

    U: Tensor
    Vh: Tensor
    start: Tensor

    def __init__(self, base: nn.Module, site: Site, U: Tensor, S: Tensor, Vh: Tensor) -> None:
        super().__init__(base, 1.0, site.dropout)
        self.register_buffer("U", U.contiguous(), persistent=False)
        self.register_buffer("Vh", Vh.contiguous(), persistent=False)
        self.register_buffer("start", S.contiguous(), persistent=False)
        self.sigma = FactorScale(S)

    def trained(self) -> dict[str, nn.Parameter]:
        """Return sigma."""
        return {"sigma": self.sigma.weight}

    def update(self, x: Tensor) -> Tensor:
        """Return U diag(sigma) V^T x."""
        low = nn.functional.linear(x, self.Vh)
        return nn.functional.linear(self.sigma(low), self.U)

    def change(self) -> LowRank:
        """Return (V^T, U diag(sigma - sigma_0))."""
        return LowRank(self.Vh, self.U * (self.sigma.weight - self.start))
