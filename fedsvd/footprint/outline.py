"""A run's model without values, and one step of it."""

import warnings
from collections.abc import Mapping
from contextlib import nullcontext
from dataclasses import dataclass
from typing import final

import torch
from torch import Tensor, nn
from torch._subclasses import FakeTensorMode
from transformers.pytorch_utils import Conv1D

from fedsvd.adapters.adapted import NAME
from fedsvd.adapters.blocks import Blocks, find_blocks
from fedsvd.adapters.linear import FactorLinear
from fedsvd.adapters.lora import Attached, set_trainable
from fedsvd.adapters.stored import shape_of
from fedsvd.adapters.targets import find_layers
from fedsvd.client.recompute import Recomputed
from fedsvd.client.shorten import tails
from fedsvd.client.worker import choose_device, choose_precision
from fedsvd.footprint.held import bytes_of, hold
from fedsvd.live import Live
from fedsvd.lowrank import AdapterState
from fedsvd.models.base import Model
from fedsvd.models.decoder import Output
from fedsvd.models.language_model import chunk_of, losses_of
from fedsvd.objectives.build import objective_of
from fedsvd.privacy.hooks import Hooks
from fedsvd.settings import Settings
from fedsvd.settings.model import FIXED_HEADS


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
class Moment:
    """One of the moments at which a run's memory can be largest: what it is, and a batch's shape.

    `precision` is that of the frozen backbone; `trains` says that a backward pass follows.
    """

    what: str
    rows: int
    tokens: int
    precision: str
    trains: bool = True


@final
@dataclass(frozen=True)
class Sizes:
    """What a run's model and one micro-batch take, in bytes and numbers.

    weights: as they are held. loaded: in float32, as they are read. trained: numbers of one example's
    gradient. adapter: numbers of all that trains at most. kept: numbers that are kept of one token,
    where blocks stand below the lowest adapted one. activations: what a forward pass leaves for the
    backward pass. most: what stands at once, beside weights. shapes: how many shapes frozen matrices
    have.
    """

    weights: float
    loaded: int
    trained: int
    adapter: int
    kept: int
    activations: int
    most: int
    shapes: int


def precision_of(settings: Settings) -> str:
    """Return the precision of the frozen backbone in a step, "bf16" or "fp32"."""
    return choose_precision(settings.training.precision, choose_device(settings.device))


def sizes(settings: Settings, trains: tuple[str, ...], moment: Moment) -> Sizes:
    """Return what a moment takes, with hooks where a run has them; InputError."""
    objective, model = objective_of(settings.task), settings.model
    with FakeTensorMode(allow_non_fake_inputs=True), warnings.catch_warnings():
        warnings.simplefilter("ignore")
        body = objective.outline(settings)
        output: Output | None = getattr(body, "_output", None)
        modules = [body] if output is None else [body, output.head]
        shapes = len({shape_of(m) for m in body.modules() if type(m) in (nn.Linear, Conv1D)})
        numbers = sum(
            p.numel() for p in {id(p): p for m in modules for p in m.parameters()}.values()
        )
        hold(body, None if output is None else output.head, model)
        weights = bytes_of(modules, model.quantization)
        attached = _attached(body, settings, trains)
        outline = Outline(attached, nn.Identity(), precision=moment.precision, head_trains=False)
        by_hooks = settings.privacy.unit == "example" and settings.privacy.gradients != "loop"
        hooks = Hooks(outline) if by_hooks and moment.trains else None
        trained = sum(p.numel() for p in outline.trainable().values())
        factors = sum(p.numel() for m in attached.layers.values() for n, p in m.named_parameters()
                      if "lora_" in n)  # fmt: skip
        blocks = find_blocks(body, list(attached.layers))
        if settings.training.gradient_checkpointing and blocks is not None and moment.trains:
            Recomputed(outline, list(blocks.modules))
        elif settings.labelled:
            tails(outline.backbone, model.pooling)
        width = int(body.config.hidden_size)  # type: ignore[union-attr, arg-type]
        head = _head(settings, width) if settings.labelled and model.head_trains else 0
        live = Live()
        activations = _step(outline, output, live, moment, model.attention)
        if hooks is not None:
            hooks.cleanup()
    below = blocks is not None and _first(blocks, attached) > 0
    return Sizes(
        weights, 4 * numbers, trained + head, factors + head, width if below else 0, activations,
        live.most, shapes,
    )  # fmt: skip


def _head(settings: Settings, width: int) -> int:
    """Return how many numbers a classifier's head has that trains; of 2 labels if none are named."""
    model, classes = settings.model, len(settings.data.labels or ("", ""))
    if model.head in FIXED_HEADS:
        return classes * width * model.head_dim
    bias = int(model.head_bias)
    dense = width * (width + bias) if model.head_form == "two_layer" else 0
    return dense + classes * (width + bias)


def _first(blocks: Blocks, attached: Attached) -> int:
    """Return the number of the lowest adapted block."""
    found = [blocks.number(name) for name in attached.layers]
    return 0 if None in found else min(n for n in found if n is not None)


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


def _step(model: Outline, output: Output | None, live: Live, moment: Moment, attention: str) -> int:
    """Run a forward and a backward pass; return the bytes that stand between the two.

    Every token of a language model counts, as in a plain text.
    """
    ids = torch.zeros(moment.rows, moment.tokens, dtype=torch.int64)
    mask = torch.ones_like(ids)
    with live, nullcontext() if moment.trains else torch.no_grad():
        if attention == "eager":
            hidden = model.hidden({"input_ids": ids, "attention_mask": mask})
        else:  # fused ones look at the mask's values, which there are none of
            with model.autocast(mask):
                hidden = model.backbone(input_ids=ids).last_hidden_state
        between = live.now
        if output is not None:
            chosen = hidden[:, :-1].flatten(0, 1).float()
            gradient = torch.empty_like(chosen) if hidden.requires_grad else None
            part = slice(2 * chunk_of(output.head))  # further chunks take what these take
            losses_of(
                chosen[part], output.head, ids[:, 1:].flatten()[part], output.scale, output.cap,
                moment.precision,
            )  # fmt: skip
            del chosen, gradient
        if hidden.requires_grad:
            hidden.backward(torch.ones_like(hidden))
        return between
