"""What layers see of public texts, and which way these pull them, for adapters that start from it."""

from collections.abc import Iterable, Mapping
from typing import Any

import torch
from torch import Tensor, nn
from transformers.pytorch_utils import Conv1D

from fedsvd.adapters.base import Inputs
from fedsvd.errors import InputError


@torch.no_grad()
def measure(
    backbone: nn.Module, names: Iterable[str], batches: Iterable[Mapping[str, Tensor]]
) -> dict[str, Inputs]:
    """Return E[x x^T] and E[x] of the named layers' inputs over all tokens of the batches.

    Tokens outside the attention mask do not count. Sums are in float64. Raises InputError if what a
    layer sees is not finite.
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
    for name in names:  # the diagonal holds sums of squares: no term cancels another
        if not bool(moments[name].isfinite().all()):
            raise InputError(f"public texts: what {name} sees of them is not finite")
    return {n: Inputs(moments[n] / tokens, sums[n] / tokens, tokens) for n in names}


def mean_gradients(
    backbone: nn.Module, names: Iterable[str], losses: Iterable[Tensor]
) -> dict[str, Tensor]:
    """Return dL/dW (d_out, d_in), float64, of the named layers' frozen weights.

    L is the mean of all `losses`, a vector for each batch, which are asked for one after another
    while gradients are on. Zero where L does not depend on a weight.
    """
    modules = dict(backbone.named_modules())
    layers: dict[str, Any] = {name: modules[name] for name in names}
    weights = {name: layer.weight for name, layer in layers.items()}
    sums = {name: torch.zeros_like(w, dtype=torch.float64) for name, w in weights.items()}
    frozen = {name: not w.requires_grad for name, w in weights.items()}
    count = 0
    for w in weights.values():
        w.requires_grad_(True)
    try:
        with torch.enable_grad():
            for each in losses:
                found = torch.autograd.grad(each.sum(), list(weights.values()), allow_unused=True)
                count += len(each)
                for name, gradient in zip(weights, found, strict=True):
                    if gradient is not None:
                        sums[name] += gradient
    finally:
        for name, w in weights.items():
            w.requires_grad_(not frozen[name])
    stored = {n: isinstance(layer, Conv1D) for n, layer in layers.items()}
    return {n: (t.mT if stored[n] else t) / count for n, t in sums.items()}
