"""Frozen layers whose matrices are held in fewer bytes than float32, and used at its precision.

A product takes the matrix at the precision around it: float32, or bfloat16 under autocast. What is
made of it for that stands in memory for the one product alone, on the way forward and on the way
back. So the numbers are those of a plain layer whose weight has been rounded: nothing of one example
enters another's, as it would with kernels that quantise activations over a batch.
"""

from typing import Any, final

import torch
from torch import Tensor, nn
from torch.nn import functional as F
from transformers.pytorch_utils import Conv1D

from fedsvd.errors import InputError

BLOCK = 64  # weights of NF4 that have one scale (Dettmers et al., NeurIPS 2023, arXiv 2305.14314)


class _Product(torch.autograd.Function):
    """x W^T + b of a frozen W (d_out, d_in), of which nothing but the layer is kept."""

    @staticmethod
    def forward(ctx: Any, x: Tensor, layer: nn.Module) -> Tensor:
        device = x.device.type
        lower = torch.is_autocast_enabled(device)
        dtype = torch.get_autocast_dtype(device) if lower else x.dtype
        ctx.layer, ctx.dtype, ctx.given = layer, dtype, x.dtype
        bias: Tensor | None = layer.bias  # type: ignore[assignment]
        with torch.autocast(device, enabled=False):
            return F.linear(
                x.to(dtype), expanded(layer, dtype), None if bias is None else bias.to(dtype)
            )

    @staticmethod
    @torch.autograd.function.once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, None]:
        with torch.autocast(grad.device.type, enabled=False):
            weight = expanded(ctx.layer, ctx.dtype)
            return (grad.to(ctx.dtype) @ weight).to(ctx.given), None


@final
class StoredLinear(nn.Linear):
    """A frozen linear layer in bfloat16, or quantised: its `weight` is what bitsandbytes packs."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the layer's output (..., d_out) at the precision around it."""
        found: Tensor = _Product.apply(input, self)
        return found


@final
class StoredConv1D(Conv1D):
    """GPT-2's linear layer in bfloat16, its weight (d_in, d_out)."""

    def forward(self, x: Tensor) -> Tensor:
        """Return the layer's output (..., d_out) at the precision around it."""
        found: Tensor = _Product.apply(x, self)
        return found


@final
class StoredEmbedding(nn.Embedding):
    """A frozen table in bfloat16, which gives float32 rows."""

    def forward(self, input: Tensor) -> Tensor:
        """Return the rows (..., d) of the ids, float32."""
        return F.embedding(input, self.weight).float()


KINDS: dict[type[nn.Module], type[nn.Module]] = {
    nn.Linear: StoredLinear,
    Conv1D: StoredConv1D,
    nn.Embedding: StoredEmbedding,
}


def expanded(layer: nn.Module, dtype: torch.dtype) -> Tensor:
    """Return the weight (d_out, d_in) of a stored linear layer in a dtype."""
    weight: Tensor = layer.weight.detach()  # type: ignore[operator]
    if isinstance(layer, Conv1D):
        return weight.mT.to(dtype)
    kind = getattr(layer, "quantised", "")
    if kind == "int8":
        scale: Tensor = layer.absmax  # type: ignore[assignment]
        return (weight * (scale / 127).unsqueeze(1)).to(dtype)
    if kind == "nf4":
        functional: Any = _bitsandbytes("nf4").functional
        shape = shape_of(layer)
        absmax: Any = layer.absmax
        state = functional.QuantState(
            absmax=absmax, shape=torch.Size((len(absmax), BLOCK)), code=layer.code, blocksize=BLOCK,
            quant_type="nf4", dtype=dtype,
        )  # fmt: skip
        flat: Tensor = functional.dequantize_4bit(weight, state).flatten()
        return flat[: shape[0] * shape[1]].view(shape)
    return weight.to(dtype)


def store(model: nn.Module, dtype: str, quantization: str, name: str) -> None:
    """Hold a frozen model's weights as `model.dtype` and `model.quantization` say, in place.

    Raises InputError as `quantise` does.
    """
    if quantization != "none":
        quantise(model, quantization, name)
    if dtype == "bfloat16":
        narrow(model)
    if dtype == "bfloat16" or quantization != "none":
        release(model)


@torch.no_grad()
def release(model: nn.Module) -> None:
    """Give what stayed as it was a memory of its own, in place.

    What is read from a file is a piece of the mapped file, all of which stands in memory for as long
    as one piece does.
    """
    for parameter in model.parameters():
        if parameter.dtype == torch.float32:  # others are new
            parameter.data = parameter.data.clone()


def shape_of(layer: nn.Module) -> tuple[int, int]:
    """Return (d_out, d_in) of a linear layer, however its weight is held."""
    if isinstance(layer, Conv1D):
        return int(layer.weight.shape[1]), int(layer.weight.shape[0])
    return int(layer.out_features), int(layer.in_features)  # type: ignore[arg-type]


def is_stored(layer: nn.Module) -> bool:
    """Return whether a layer's weight is held in fewer bytes than float32, and cannot be changed."""
    return isinstance(layer, (StoredLinear, StoredConv1D, StoredEmbedding))


def narrow(model: nn.Module) -> None:
    """Hold the matrices of a frozen model's plain layers in bfloat16, in place, tied ones together.

    Vectors (norms, biases), and matrices of layers of other kinds, stay as they are.
    """
    owners: dict[int, list[nn.Module]] = {}
    for module in model.modules():
        for parameter in module.parameters(recurse=False):
            owners.setdefault(id(parameter), []).append(module)
    for module in list(model.modules()):
        plain = KINDS.get(type(module))
        weight = getattr(module, "weight", None)
        if plain is None or not isinstance(weight, nn.Parameter):
            continue
        if all(type(m) in KINDS or is_stored(m) for m in owners[id(weight)]):
            weight.data = weight.data.to(torch.bfloat16)
            module.__class__ = plain


def quantise(model: nn.Module, kind: str, name: str) -> None:
    """Hold the weights of a frozen model's linear layers in `kind`, "int8" or "nf4", in place.

    "int8" has a scale for each row, "nf4" one for 64 weights. `name` is the model's. Raises
    InputError without bitsandbytes, or for a model whose linear layers are of another class.
    """
    functional: Any = _bitsandbytes(kind).functional
    for layer in quantisable(model, kind, name):
        weight = layer.weight.detach().float()  # type: ignore[operator]
        if kind == "nf4":
            # As rows of one block: on the CPU a block over the ends of rows comes back wrong.
            blocks = F.pad(weight.flatten(), (0, -weight.numel() % BLOCK)).view(-1, BLOCK)
            packed, state = functional.quantize_4bit(
                blocks, blocksize=BLOCK, quant_type="nf4", compress_statistics=False
            )
            absmax = state.absmax
            layer.register_buffer("code", state.code, persistent=False)
        else:
            packed, absmax, _ = functional.int8_vectorwise_quant(weight)
        layer.register_buffer("absmax", absmax, persistent=False)
        layer.weight = nn.Parameter(packed, requires_grad=False)
        layer.quantised = kind  # type: ignore[assignment]
        layer.__class__ = StoredLinear


def quantisable(model: nn.Module, kind: str, name: str) -> list[nn.Module]:
    """Return the layers whose weights `kind` can hold; InputError if they are of another class."""
    layers = [m for m in model.modules() if type(m) is nn.Linear]
    if not layers or any(isinstance(m, Conv1D) for m in model.modules()):
        raise InputError(
            f"model.quantization: {kind!r} is not allowed with {name!r}, whose linear layers are "
            "not torch.nn.Linear; take model.dtype=bfloat16"
        )
    return list(layers)


def check_quantised(kind: str) -> None:
    """Raise InputError if weights are to be held in `kind` and bitsandbytes is not there."""
    if kind != "none":
        _bitsandbytes(kind)


def _bitsandbytes(kind: str) -> Any:
    try:
        import bitsandbytes
    except ImportError as error:
        raise InputError(
            f"model.quantization: {kind!r} needs the package bitsandbytes; "
            "pip install -c constraints.txt -e '.[quantization]'"
        ) from error
    return bitsandbytes
