"""Attaching LoRA factors to a backbone through PEFT, and moving states in and out of it."""

import warnings
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from torch import nn

from fedsvd.adapters.initial import ABSORBED, INITIALISERS
from fedsvd.adapters.linear import FactorLinear
from fedsvd.errors import InputError, wrong
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.settings import AdapterSettings

NAME = "default"  # PEFT's name for the one adapter
ORIGINAL = "fedsvd_original_weight"  # buffer of a layer whose frozen weight a method changes


@dataclass(frozen=True)
class Attached:
    """A backbone with factors: PEFT's model, its LoRA layers in a fixed order, the first state."""

    model: nn.Module
    layers: dict[str, nn.Module]
    initial: AdapterState


def attach(
    backbone: nn.Module, settings: AdapterSettings, seed: int, trains: Iterable[str]
) -> Attached:
    """Put factors on every targeted linear layer of `backbone` and set which of A, B train.

    The backbone is on its device already. Every layer's factors come from their own stream (seed,
    "adapter", layer name), so they do not depend on which other layers are targeted. Raises
    InputError if nothing matches or the rank exceeds a layer's sizes.
    """
    if settings.name == "none":
        return Attached(backbone, {}, AdapterState({}))
    _check_targets(backbone, settings)
    model = _wrap(backbone, settings)
    layers: dict[str, nn.Module] = {}
    factors: dict[str, LowRank] = {}
    for path, module in model.named_modules():
        if hasattr(module, "lora_A") and NAME in module.lora_A:
            layer = path.removeprefix("base_model.model.")
            layers[layer] = module
            factors[layer] = _initialise(layer, module, settings, seed)
    set_trainable(layers, trains)
    return Attached(model, layers, AdapterState(factors))


def _wrap(backbone: nn.Module, settings: AdapterSettings) -> nn.Module:
    from peft import LoraConfig, get_peft_model

    config = LoraConfig(
        r=settings.rank,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=list(settings.targets),
        init_lora_weights=False,
        bias="none",
    )
    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # PEFT draws initial values from the global generator; ours replace them.
        warnings.simplefilter("ignore")
        model: nn.Module = get_peft_model(backbone, config)
    return model.eval()


def _initialise(layer: str, module: nn.Module, settings: AdapterSettings, seed: int) -> LowRank:
    """Set one layer's factors (and what is left of its weight) and return them."""
    weight: torch.Tensor = module.get_base_layer().weight  # type: ignore[operator]
    scale = settings.alpha / settings.rank
    generator = torch_stream(seed, Purpose.ADAPTER, layer)
    pair = INITIALISERS[settings.init](weight.detach(), settings.rank, scale, generator)
    pair = LowRank(pair.A.to(weight.device), pair.B.to(weight.device))
    if settings.init in ABSORBED:
        weight.data -= (scale * pair.product()).to(weight.dtype)
    for name, value in (("lora_A", pair.A), ("lora_B", pair.B)):
        factor = FactorLinear(value.shape[1], value.shape[0], bias=False, device=value.device)
        factor.weight.data.copy_(value)
        getattr(module, name)[NAME] = factor
    return pair


def _check_targets(backbone: nn.Module, settings: AdapterSettings) -> None:
    linear = {n: m for n, m in backbone.named_modules() if isinstance(m, nn.Linear)}
    for target in settings.targets:
        matched = [n for n in linear if n == target or n.endswith(f".{target}")]
        if not matched:
            names = sorted({n.rsplit(".", 1)[-1] for n in linear})
            raise InputError(
                f"adapter.targets: no linear layer of the model is called {target!r}; "
                f"it has {', '.join(names)}"
            )
        for name in matched:
            d_out, d_in = linear[name].weight.shape
            if settings.rank > min(d_out, d_in):
                raise wrong("adapter.rank", settings.rank, f"at most {min(d_out, d_in)} ({name})")


def set_trainable(layers: dict[str, nn.Module], trains: Iterable[str]) -> None:
    """Let exactly the factors in `trains`, a subset of {"A", "B"}, require gradients."""
    trains = set(trains)
    for module in layers.values():
        for kind in ("A", "B"):
            factor = getattr(module, f"lora_{kind}")[NAME]
            factor.weight.requires_grad_(kind in trains)
            factor.train(kind in trains)


@torch.no_grad()
def write_state(layers: dict[str, nn.Module], state: AdapterState) -> None:
    """Copy a state's factors into the model, in place; raises KeyError for a missing layer.

    A layer with a dense update W gets the frozen weight W0 + s W. Its W0 is kept aside, on the device
    and only for such layers, from the first time on, and comes back with a state that has no W.
    """
    for layer, module in layers.items():
        pair = state.factors[layer]
        module.lora_A[NAME].weight.copy_(pair.A)  # type: ignore[index,union-attr]
        module.lora_B[NAME].weight.copy_(pair.B)  # type: ignore[index,union-attr]
        _write_base(module, state.base.get(layer))


def _write_base(module: nn.Module, W: torch.Tensor | None) -> None:
    """Set the frozen weight of a LoRA layer to W0 + s W, or back to W0 without a W."""
    kept = dict(module.named_buffers(recurse=False)).get(ORIGINAL)
    if W is None and kept is None:
        return
    weight: torch.Tensor = module.get_base_layer().weight  # type: ignore[operator]
    if kept is None:
        kept = weight.detach().clone()
        module.register_buffer(ORIGINAL, kept, persistent=False)
    if W is None:
        weight.copy_(kept)
        return
    scale = module.scaling[NAME]  # type: ignore[index]
    # Summed in W's precision: the frozen weight may be of a lower one.
    weight.copy_(kept.to(W.dtype) + scale * W)


def read_state(layers: dict[str, nn.Module]) -> dict[str, LowRank]:
    """Return copies of the model's factors, in the layers' order."""
    return {
        layer: LowRank(
            module.lora_A[NAME].weight.detach().clone(),  # type: ignore[index,union-attr]
            module.lora_B[NAME].weight.detach().clone(),  # type: ignore[index,union-attr]
        )
        for layer, module in layers.items()
    }
