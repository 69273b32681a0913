"""FedSA-LoRA: clients share A and keep a B of their own."""

from collections.abc import Sequence
from typing import ClassVar, final

from fedsvd.lowrank import AdapterState
from fedsvd.strategies.base import Strategy, Update, weighted_mean


@final
class FedSa(Strategy):
    """Train A and B; average A = sum p_k A_k, and leave every B with its client.

    FedSA-LoRA (Guo et al., ICLR 2025, arXiv 2410.01463). A client's B lives in its context's state
    and never travels, so the server's own B stays as it began and models are evaluated at the
    clients. For any one B, B A is exactly the mean of the B A_k; of the clients' own products it is
    not.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    broadcasts: ClassVar[tuple[str, ...]] = ("A",)
    keeps: ClassVar[tuple[str, ...]] = ("B",)
    averages: ClassVar[bool] = True
    exact = True

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted mean of A and of the head."""
        return weighted_mean(state, updates)
