"""A run's model without values, and one step of it."""

import warnings
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode

from fedsvd.adapters.adapted import NAME
from fedsvd.adapters.blocks import find_blocks
from fedsvd.adapters.linear import FactorLinear
from fedsvd.adapters.lora import Attached, set_trainable
from fedsvd.adapters.stored import KINDS, shape_of
from fedsvd.adapters.targets import find_layers
from fedsvd.client.recompute import Recomputed
from fedsvd.client.shorten import tails
from fedsvd.footprint.live import Live
from fedsvd.lowrank import AdapterState
from fedsvd.models.base import Model
from fedsvd.objectives.build import objective_of
from fedsvd.privacy.hooks import Hooks
from fedsvd.settings import Settings

ABSMAX = 4 / 64  # bytes a weight of NF4's scales


@final
class Outline(Model):
    """The backbone with its factors, without a head."""

    def features(self, inputs: Mapping[str, Tensor], entering: Tensor | None = None) -> Tensor:
        """Return the last hidden states (n, t, d)."""
        return self.hidden(inputs, entering)

    def subspaces(self) -> list[nn.Parameter]:
        """Return none."""
        return []

    def settle(self) -> None:
        """Nothing follows from the factors."""


@final
@dataclass(frozen=True)
class Sizes:
    """What a run's model and one micro-batch of its steps take, in bytes and numbers.

    weights: as they are held. loaded: in float32, as they are read. trained: numbers of one example's
    gradient. adapter: numbers of all factors. activations: what a forward pass leaves for the
    backward pass of a micro-batch. most: what stands at once in such a step, beside weights. rows,
    tokens: its shape. vocabulary, width: of a language model's output layer, 0 without one.
    """

    weights: float
    loaded: int
    numbers: int
    trained: int
    adapter: int
    activations: int
    most: int
    rows: int
    tokens: int
    vocabulary: int
    width: int


def sizes(settings: Settings, trains: tuple[str, ...], rows: int, tokens: int) -> Sizes:
    """Return what `rows` examples of `tokens` tokens take in a step, hooks on; InputError."""
    objective, model = objective_of(settings.task), settings.model
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        body = objective.outline(settings)
        head = getattr(body, "_output", None)
        weights, loaded, numbers = _weights(
            body, head and head.head, model.dtype, model.quantization
        )
        largest = max((p.numel() for p in body.parameters()), default=0)
        if model.stored:
            _narrow(body)
        attached = _attached(body, settings, trains)
        outline = Outline(
            attached, nn.Identity(), precision=_precision(settings), head_trains=False
        )
        by_hooks = settings.privacy.unit == "example" and settings.privacy.gradients != "loop"
        hooks = Hooks(outline) if by_hooks else None
        trained = sum(p.numel() for p in outline.trainable().values())
        factors = sum(p.numel() for m in attached.layers.values() for n, p in m.named_parameters()
                      if "lora_" in n)  # fmt: skip
        blocks = find_blocks(body, list(attached.layers))
        if settings.training.gradient_checkpointing and blocks is not None:
            Recomputed(outline, list(blocks.modules))
        elif settings.labelled:
            tails(outline.backbone, model.pooling)
        live = Live()
        activations = _step(outline, live, rows, tokens, model.attention)
        if hooks is not None:
            hooks.cleanup()
    table = None if head is None else head.head.weight
    return Sizes(
        weights, loaded, numbers, trained, factors, activations,
        live.most + (4 * largest if model.stored else 0), rows, tokens,
        0 if table is None else int(table.shape[0]), 0 if table is None else int(table.shape[1]),
    )  # fmt: skip


def _precision(settings: Settings) -> str:
    from fedsvd.client.worker import choose_device, choose_precision

    return choose_precision(settings.training.precision, choose_device(settings.device))


@final
class _Lora(nn.Module):
    """What PEFT's LoRA layer computes; PEFT itself moves tensors that have no place."""

    def __init__(self, base: nn.Module, rank: int) -> None:
        super().__init__()
        d_out, d_in = shape_of(base)
        self.base_layer = base
        self.lora_A = nn.ModuleDict({NAME: FactorLinear(d_in, rank, bias=False)})
        self.lora_B = nn.ModuleDict({NAME: FactorLinear(rank, d_out, bias=False)})

    def forward(self, x: Tensor) -> Tensor:
        """Return W x + B A x."""
        found: Tensor = self.base_layer(x)
        added = self.lora_B[NAME](self.lora_A[NAME](x.float())) * 1.0
        return (found + added).to(found.dtype)


def _attached(body: nn.Module, settings: Settings, trains: tuple[str, ...]) -> Attached:
    """Return the backbone with LoRA factors of the settings' ranks, whatever starts them."""
    if settings.adapter.name == "none":
        return Attached(body, {}, AdapterState({}))
    layers: dict[str, nn.Module] = {}
    for name, rank in find_layers(body, settings.adapter).items():
        parent, _, last = name.rpartition(".")
        holder = body.get_submodule(parent)
        layers[name] = _Lora(getattr(holder, last), rank)
        setattr(holder, last, layers[name])
    set_trainable(layers, trains)
    return Attached(body, layers, AdapterState({}))


def _narrow(body: nn.Module) -> None:
    """Let plain layers be such as hold less: what they make of their weights for a product goes."""
    for module in list(body.modules()):
        plain = KINDS.get(type(module))
        if plain is not None:
            held: Any = module
            held.weight = nn.Parameter(held.weight.to(torch.bfloat16), requires_grad=False)
            module.__class__ = plain


def _weights(
    body: nn.Module, head: nn.Module | None, dtype: str, quantization: str
) -> tuple[float, int, int]:
    """Return the bytes of the weights as they are held, in float32, and how many there are."""
    size, numbers, seen = 0.0, 0, set()
    within = {id(m) for m in body.modules()}
    for module in [*body.modules(), *([] if head is None else [head])]:
        for parameter in module.parameters(recurse=False):
            if id(parameter) in seen:
                continue
            seen.add(id(parameter))
            each = 4.0
            if parameter.ndim == 2 and type(module) in KINDS:
                linear = type(module) is nn.Linear and id(module) in within
                each = 2.0 if dtype == "bfloat16" else 4.0
                if linear and quantization != "none":
                    each = 1.0 if quantization == "int8" else 0.5 + ABSMAX
            size, numbers = size + each * parameter.numel(), numbers + parameter.numel()
    return size, 4 * numbers, numbers


def _step(model: Outline, live: Live, rows: int, tokens: int, attention: str) -> int:
    """Run a forward and a backward pass; return the bytes that stand between the two."""
    ids = torch.zeros(rows, tokens, dtype=torch.int64)
    mask = torch.ones_like(ids)
    with live:
        if attention == "eager":
            hidden = model.hidden({"input_ids": ids, "attention_mask": mask})
        else:  # fused ones look at the mask's values, which there are none of
            with model.autocast(mask):
                hidden = model.backbone(input_ids=ids).last_hidden_state
        between = live.now
        if hidden.requires_grad:
            hidden.backward(torch.ones_like(hidden))
        return between
