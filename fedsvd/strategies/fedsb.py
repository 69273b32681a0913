"""Fed-SB: clients train an r x r matrix between fixed factors, and the server averages it."""

from collections.abc import Sequence
from typing import ClassVar, final

from fedsvd.lowrank import AdapterState
from fedsvd.strategies.base import Strategy, Update, weighted_extra


@final
class FedSb(Strategy):
    """R = sum p_k R_k for the update B R A with B and A fixed and equal everywhere.

    Fed-SB (Singhal et al., 2025, arXiv 2502.15436) is this rule with the adapter `lora_sb`: B, A and
    the first R are the singular triplets of a first step, here on public texts, where the official
    code takes it from training data without noise. With `lora_xs`, between the weight's own vectors
    or random ones, it is averaged LoRA-XS. B R A is linear in R, so the mean of R is the exact mean
    of the updates, from r^2 numbers a layer.
    """

    trains: ClassVar[tuple[str, ...]] = ()
    broadcasts: ClassVar[tuple[str, ...]] = ()
    needs: ClassVar[tuple[str, ...]] = ("R",)
    averages: ClassVar[bool] = True
    mean_only: ClassVar[bool] = True
    exact = True

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted mean of R, and of the head."""
        return weighted_extra(state, updates)
