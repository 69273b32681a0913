"""FedSA-LoRA: clients share A and keep a B of their own."""

from collections.abc import Sequence
from typing import ClassVar, final

from fedsvd.errors import one_of
from fedsvd.lowrank import AdapterState
from fedsvd.strategies.base import Strategy, Update, weighted_mean

HEADS = ("own", "shared")


@final
class FedSa(Strategy):
    """Train A and B; average A = sum p_k A_k, and leave every B with its client.

    FedSA-LoRA (Guo et al., ICLR 2025, arXiv 2410.01463; checked against the released code). A
    client's B lives in its context's state and never travels, so the server's own B stays as it
    began and models are evaluated at the clients. For any one B, B A is exactly the mean of the B
    A_k; of the clients' own products it is not.

    `head` "own" leaves a trained head with its client too, as the released configurations for GLUE
    do; "shared" averages it.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    broadcasts: ClassVar[tuple[str, ...]] = ("A",)
    keeps: tuple[str, ...] = ("B",)
    averages: ClassVar[bool] = True
    exact = True

    def __init__(self, head: str = "shared") -> None:
        if head not in HEADS:
            raise one_of("strategy.head", head, HEADS)
        self.keeps = ("B", "extra") if head == "own" else ("B",)

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the weighted mean of A, and of the head where it is shared."""
        return weighted_mean(state, updates)
