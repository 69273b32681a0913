"""FedEx-LoRA: average the factors, put what that loses into the frozen weight."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import Tensor

from fedsvd.lowrank import AdapterState, weighted_sum
from fedsvd.strategies.base import Strategy, Update, weighted_mean


@final
class FedEx(Strategy):
    """A = sum p_k A_k, B = sum p_k B_k, W += sum p_k B_k A_k - B A.

    FedEx-LoRA (Singhal et al., ACL 2025, arXiv 2410.09432). W is the dense update of the frozen
    weight, W0 + s W; its residual of a round has rank up to (K + 1) r and W more, so W travels
    dense. Exact.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    broadcasts: ClassVar[tuple[str, ...]] = ("A", "B", "W")
    exact = True

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the mean of the factors, with the residual in W."""
        mean, base = weighted_mean(state, updates), dict(state.base)
        for layer, pair in mean.factors.items():
            W = base.get(layer, torch.zeros_like(pair.product())).double()
            residual = mean_product(layer, updates) - pair.B.double() @ pair.A.double()
            base[layer] = (W + residual).to(pair.B.dtype)
        return replace(mean, base=base)


def mean_product(layer: str, updates: Sequence[Update]) -> Tensor:
    """Return sum p_k B_k A_k of a layer as a dense (d_out, d_in) float64 matrix."""
    pairs = [u.state.factors[layer] for u in updates]
    return weighted_sum(pairs, [u.weight for u in updates]).product()
