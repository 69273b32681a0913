"""LA-LoRA: A and B alternate within a client's round, on filtered gradients."""

from collections.abc import Sequence
from typing import ClassVar, final

from fedsvd.client.rule import LocalRule
from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState
from fedsvd.strategies.base import Strategy, Update, weighted_mean

BINOMIAL = "binomial"


@final
class LaLora(Strategy):
    """Odd local steps train B, even ones A; noised gradients pass the filter [1, 4, 6, 4, 1] / 16.

    LA-LoRA (Liu et al., ICLR 2026, arXiv 2602.19926; read in secondary sources and in the released
    code). The server averages A = sum p_k A_k and B = sum p_k B_k. The filter runs along d_in for A
    and along d_out for B, with symmetric padding; components are not mixed. `smoothing` may be a
    number in its place, the standard deviation of a Gaussian filter in entries; 0 filters nothing.
    A's rate is `rate_A` times the run's, B's `rate_B` times: 1 and 2 are the released code's.
    With `projected` the gradients are g_B (A A^T)^-1 / s^2 and (B^T B)^-1 g_A / s^2 (theorem 2).
    In a step only one factor is noised, so no product of two noises enters B A.

    Every example's gradient is clipped here, over all that trains in a step. The released code clips
    the batch's, tensor by tensor, starts with A, and has another filter, a Laplacian one.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    averages: ClassVar[bool] = True
    mean_only: ClassVar[bool] = True

    def __init__(
        self,
        smoothing: float | str = BINOMIAL,
        rate_A: float = 1.0,
        rate_B: float = 2.0,
        projected: bool = False,
    ) -> None:
        number = isinstance(smoothing, (int, float)) and not isinstance(smoothing, bool)
        if smoothing != BINOMIAL and not (number and 0 <= smoothing < float("inf")):  # type: ignore[operator]
            raise wrong("strategy.smoothing", smoothing, f"'{BINOMIAL}', or a number of at least 0")
        for key, rate in (("rate_A", rate_A), ("rate_B", rate_B)):
            if not isinstance(rate, (int, float)) or not 0 < rate < float("inf"):
                raise wrong(f"strategy.{key}", rate, "a number above 0")
        if not isinstance(projected, bool):
            raise wrong("strategy.projected", projected, "true or false")
        self.local = LocalRule(
            alternates=True,
            binomial=smoothing == BINOMIAL,
            smoothing=0.0 if smoothing == BINOMIAL else float(smoothing),
            projected=projected,
            rate_A=rate_A,
            rate_B=rate_B,
        )

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted means of A, B and the head."""
        return weighted_mean(state, updates)
