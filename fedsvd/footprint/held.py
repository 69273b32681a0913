"""Frozen weights without values, held as `model.dtype` and `model.quantization` say."""

from collections.abc import Iterable

import torch
from torch import Tensor, nn

from fedsvd.adapters.stored import BLOCK, KINDS, StoredLinear, quantisable
from fedsvd.settings import ModelSettings

CODE = 16  # float32 numbers that NF4 stands for, with each layer


def hold(body: nn.Module, head: nn.Module | None, model: ModelSettings) -> None:
    """Let plain layers be such as hold less, as `fedsvd.adapters.stored.store` does with values.

    What is quantised has one byte a weight here, so that what it becomes for a product is a tensor
    of its own, as it is of packed weights; `bytes_of` counts what the packed ones take.
    InputError for a model whose weights cannot be quantised.
    """
    kind = model.quantization
    for layer in [] if kind == "none" else quantisable(body, kind, model.name):
        weight: Tensor = layer.weight  # type: ignore[assignment]
        if kind == "int8":
            layer.register_buffer("absmax", torch.zeros(len(weight)), persistent=False)
            layer.quantised = "int8"  # type: ignore[assignment]
        layer.weight = nn.Parameter(weight.to(torch.int8), requires_grad=False)
        layer.__class__ = StoredLinear
    if model.dtype != "bfloat16":
        return
    made: dict[Tensor, nn.Parameter] = {}  # tied tables stay one
    for module in [*body.modules(), *([] if head is None else [head])]:
        plain = KINDS.get(type(module))
        if plain is None:
            continue
        weight = module.weight  # type: ignore[assignment]
        if weight not in made:
            made[weight] = nn.Parameter(weight.to(torch.bfloat16), requires_grad=False)
        module.weight = made[weight]
        if module is not head:
            module.__class__ = plain


def bytes_of(modules: Iterable[nn.Module], quantization: str) -> float:
    """Return the bytes of the modules' parameters and buffers, tied ones once."""
    found: dict[int, float] = {}
    for module in {id(m): m for whole in modules for m in whole.modules()}.values():
        for tensor in (*module.parameters(recurse=False), *module.buffers(recurse=False)):
            packed = tensor.dtype == torch.int8 and quantization == "nf4"
            blocks = -(-tensor.numel() // BLOCK)
            size = blocks * (BLOCK // 2 + 4) + 4 * CODE if packed else tensor.nbytes
            found[id(tensor)] = float(size)
    return sum(found.values())
