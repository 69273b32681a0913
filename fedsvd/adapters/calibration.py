"""What layers see of public texts, for adapters that start from it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from fedsvd.adapters.base import Inputs


@torch.no_grad()
def measure(
    backbone: nn.Module, names: Iterable[str], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, Inputs]:
    """Return E[x x^T] and E[x] of the named layers' inputs over all tokens of the batches.

    Tokens outside the attention mask do not count. Sums are in float64.
    """
    names, mask = list(names), torch.empty(0)
    moments: dict[str, Tensor] = {}
    sums: dict[str, Tensor] = {}
    tokens = 0

    def collect(name: str) -> Any:
        def hook(module: nn.Module, arguments: tuple[Tensor, ...]) -> None:
            x = arguments[0][mask].double()
            moments[name] = moments.get(name, 0) + x.mT @ x
            sums[name] = sums.get(name, 0) + x.sum(0)

        return hook

    modules = dict(backbone.named_modules())
    handles = [modules[name].register_forward_pre_hook(collect(name)) for name in names]
    try:
        for batch in batches:
            mask = batch["attention_mask"].bool()
            tokens += int(mask.sum())
            backbone(**batch)
    finally:
        for handle in handles:
            handle.remove()
    return {n: Inputs(moments[n] / tokens, sums[n] / tokens, tokens) for n in names}
