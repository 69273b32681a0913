"""FLoRA: the stacked updates go into the frozen weight, and the factors start again."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch

from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.strategies.base import Strategy, Update, weighted_extra
from fedsvd.strategies.fedex import mean_product


@final
class Flora(Strategy):
    """W += sum p_k B_k A_k; then a fresh Kaiming-uniform A and B = 0, every round.

    FLoRA (Wang et al., NeurIPS 2024, arXiv 2409.05976). W is the dense update of the frozen weight,
    W0 + s W; it is what travels down, as clients that miss a round could not add it up themselves.
    A ~ U(-1/sqrt d_in, 1/sqrt d_in) is from the stream (seed, "subspace", round, layer). Exact.
    Clients may have ranks of their own, and take so many of the first rows of A.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    any_rank: ClassVar[bool] = True
    broadcasts: ClassVar[tuple[str, ...]] = ("A", "B", "W")
    exact = True

    def __init__(self, seed: int = 0) -> None:
        self.seed = seed

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the state with the mean product in W and new factors; the head is the mean."""
        factors, base = {}, dict(state.base)
        for layer, pair in state.factors.items():
            W = base.get(layer, torch.zeros_like(pair.product())).double()
            base[layer] = (W + mean_product(layer, updates)).to(pair.B.dtype)
            factors[layer] = fresh(pair, self.seed, state.round, layer)
        return replace(weighted_extra(state, updates), factors=factors, base=base)


def fresh(pair: LowRank, seed: int, round: int, layer: str) -> LowRank:
    """Return A ~ U(-1/sqrt d_in, 1/sqrt d_in) and B = 0 in the shapes, dtype and place of `pair`."""
    generator = torch_stream(seed, Purpose.SUBSPACE, round, layer)
    A = torch.empty(pair.A.shape, dtype=torch.float64)
    A.uniform_(-1, 1, generator=generator).div_(A.shape[1] ** 0.5)
    return LowRank(A.to(pair.A), torch.zeros_like(pair.B))
