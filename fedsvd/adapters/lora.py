"""Attaching an adapter to a backbone, and moving states in and out of it.

LoRA layers are PEFT's; parametrisations of ours take a layer's place with the same names for what
both have.
"""

import warnings
from collections.abc import Callable, Collection, Iterable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import Any, cast

import torch
from torch import Tensor, nn

from fedsvd.adapters.adapted import NAME, Adapted, refuse_stored, set_weight, weight_of
from fedsvd.adapters.base import Adapter, Initialiser, Inputs, Parametrisation, Site
from fedsvd.adapters.build import build_adapter
from fedsvd.adapters.dora import MagnitudeAndDirection
from fedsvd.adapters.linear import FactorLinear
from fedsvd.adapters.targets import find_layers, groups_of
from fedsvd.errors import InputError
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.settings import AdapterSettings
from fedsvd.threads import one_thread

ORIGINAL = "fedsvd_original_weight"  # buffer of a layer whose frozen weight a method changes

# Given the names of layers, what they see of public texts.
Measure = Callable[[Iterable[str]], Mapping[str, Inputs]]
# Given the names of layers, dL/dW (d_out, d_in) of public texts with labels.
Differentiate = Callable[[Iterable[str]], Mapping[str, Tensor]]


@dataclass(frozen=True)
class Attached:
    """A backbone with its adapted layers in a fixed order, and the first state.

    `penalty` is the adapter's regulariser, a differentiable scalar of parameters alone, or None;
    `decoupled` says how its gradient acts (`Parametrisation.decoupled`).
    """

    model: nn.Module
    layers: dict[str, nn.Module]
    initial: AdapterState
    penalty: Callable[[], Tensor] | None = None
    decoupled: bool = False


def attach(
    backbone: nn.Module,
    settings: AdapterSettings,
    seed: int,
    trains: Iterable[str],
    measure: Measure | None = None,
    adapter: Adapter | None = None,
    unreached: Collection[str] = (),
    differentiate: Differentiate | None = None,
) -> Attached:
    """Adapt every targeted linear layer of `backbone` and set which of A, B train.

    The backbone is on its device already. Every layer's factors come from their own stream (seed,
    "adapter", layer name), so they do not depend on which other layers are targeted; they are made
    on one thread, so that processes with other numbers of threads get the same bits. `measure` and
    `differentiate` are asked by adapters that look at public texts; `adapter` is used in place of the
    configured one.
    Layers that are `unreached` get none.
    Raises InputError if nothing matches, the rank exceeds a layer's sizes, or the adapter refuses a
    layer.
    """
    if settings.name == "none":
        return Attached(backbone, {}, AdapterState({}))
    adapter = build_adapter(settings) if adapter is None else adapter
    ranks = find_layers(backbone, settings, unreached)
    with one_thread():
        sites = _sites(backbone, settings, seed, adapter, ranks, measure, differentiate)
        penalty, decoupled = None, False
        if isinstance(adapter, Parametrisation):
            decoupled = adapter.decoupled
            layers = _replace(backbone, adapter, sites)
            model, own = backbone.eval(), [m for m in layers.values() if isinstance(m, Adapted)]
            with torch.no_grad():
                some = adapter.penalty(own)
            if some is not None:
                penalty = cast(Callable[[], Tensor], partial(adapter.penalty, own))
        elif isinstance(adapter, Initialiser):
            model, layers = _wrap(backbone, settings, adapter, sites)
        else:
            raise InputError(
                f"adapter: {type(adapter).__name__} is neither an Initialiser nor a Parametrisation"
            )
    initial = AdapterState(read_state(layers), extra_of(layers))
    set_trainable(layers, trains)
    return Attached(model, layers, initial, penalty, decoupled)


def _sites(
    backbone: nn.Module, settings: AdapterSettings, seed: int, adapter: Adapter,
    ranks: Mapping[str, int], measure: Measure | None, differentiate: Differentiate | None,
) -> dict[str, Site]:  # fmt: skip
    """Return the targeted layers with all that the adapter needs to know of each."""
    groups = groups_of(backbone, ranks, adapter.group)
    looked = list(dict.fromkeys(name for group in groups.values() for name in group))
    inputs: Mapping[str, Inputs] = {}
    gradients: Mapping[str, Tensor] = {}
    if adapter.needs_inputs:
        if measure is None:
            raise InputError(f"adapter: {type(adapter).__name__} needs public texts to look at")
        inputs = measure(looked)
    if adapter.needs_gradients:
        if differentiate is None:
            raise InputError(
                f"adapter: {type(adapter).__name__} needs public texts with labels to look at"
            )
        gradients = differentiate(looked)
    named = dict(backbone.named_modules())
    usual = max(ranks.values()) if settings.rank is None else settings.rank  # of those beside them
    sites = {
        name: Site(
            name, weight_of(named[name]), ranks.get(name, usual), settings.alpha,
            torch_stream(seed, Purpose.ADAPTER, name), settings.dropout, inputs.get(name),
            settings.rslora, gradients.get(name),
        )
        for name in looked
    }  # fmt: skip
    common: dict[tuple[str, ...], Any] = {}
    if adapter.group > 1:
        for group in groups.values():
            if group not in common:
                common[group] = adapter.common([sites[name] for name in group])
    return {name: replace(sites[name], common=common.get(groups[name])) for name in ranks}


def _replace(
    backbone: nn.Module, adapter: Parametrisation, sites: Mapping[str, Site]
) -> dict[str, nn.Module]:
    """Put the adapter's modules in the layers' places."""
    layers: dict[str, nn.Module] = {}
    for name, site in sites.items():
        parent, _, last = name.rpartition(".")
        holder = backbone.get_submodule(parent)
        layer = adapter.adapt(getattr(holder, last), site)
        setattr(holder, last, layer)
        layers[name] = layer
    return layers


def _wrap(
    backbone: nn.Module, settings: AdapterSettings, adapter: Initialiser, sites: Mapping[str, Site]
) -> tuple[nn.Module, dict[str, nn.Module]]:
    """Let PEFT wrap the layers, and set their factors and what is left of their weights."""
    from peft import get_peft_model

    with warnings.catch_warnings(), torch.random.fork_rng(devices=[]):
        # PEFT draws initial values from the global generator; ours replace them.
        warnings.simplefilter("ignore")
        ranks = {name: site.rank for name, site in sites.items()}
        model: nn.Module = get_peft_model(backbone, peft_config(settings, ranks))
    model.eval()
    found = {path.removeprefix("base_model.model."): m for path, m in model.named_modules()}
    layers = {name: found[name] for name in sites}
    for name, site in sites.items():
        module, weight = layers[name], site.weight
        given = adapter.factors(site)
        _check(type(adapter).__name__, site, given)
        pair = LowRank(given.A.to(weight), given.B.to(weight))
        left = adapter.residual(site, pair)
        if left is not weight:
            set_weight(module.get_base_layer(), left)
        for kind, value in (("lora_A", pair.A), ("lora_B", pair.B)):
            getattr(module, kind)[NAME] = FactorLinear.of(value)
    return model, layers


def _check(name: str, site: Site, pair: LowRank) -> None:
    """Raise InputError unless a start is a pair of the shapes of its layer."""
    if not isinstance(pair, LowRank):
        raise InputError(
            f"adapter: {name} gives no LowRank(A, B) for {site.name}, but {type(pair)}"
        )
    d_out, d_in = site.weight.shape
    expected, found = ((site.rank, d_in), (d_out, site.rank)), (pair.A.shape, pair.B.shape)
    if tuple(map(tuple, found)) != expected:
        raise InputError(
            f"adapter: {name} gives factors of shapes {tuple(found[0])} and {tuple(found[1])} for "
            f"{site.name}; they must be {expected[0]} and {expected[1]}"
        )


def peft_config(settings: AdapterSettings, ranks: Mapping[str, int]) -> Any:
    """Return PEFT's configuration for layers of these ranks, each with the settings' scale."""
    from peft import LoraConfig

    most = max(ranks.values())
    return LoraConfig(
        r=most,
        lora_alpha=settings.alpha,  # type: ignore[arg-type]
        lora_dropout=settings.dropout,
        target_modules=list(ranks),
        rank_pattern={n: r for n, r in ranks.items() if r != most},
        use_rslora=settings.rslora,
        init_lora_weights=False,
        bias="none",
    )


def set_trainable(layers: dict[str, nn.Module], trains: Iterable[str]) -> None:
    """Let exactly the factors in `trains`, a subset of {"A", "B"}, require gradients."""
    trains = set(trains)
    for module in layers.values():
        for kind, factor in factors_in(module).items():
            factor.weight.requires_grad_(kind in trains)
            factor.train(kind in trains)
        for part in module.modules():
            # Opacus's hooks are silent in evaluation mode.
            if any(p.requires_grad for p in part.parameters(recurse=False)):
                part.train()


def factors_in(module: nn.Module) -> dict[str, FactorLinear]:
    """Return the LoRA factors "A" and "B" of an adapted layer, or nothing if it has none."""
    if not hasattr(module, "lora_A"):
        return {}
    return {kind: getattr(module, f"lora_{kind}")[NAME] for kind in ("A", "B")}


def named_parameters(layers: Mapping[str, nn.Module]) -> dict[str, nn.Parameter]:
    """Return all that can train of the layers, by the names of `AdapterState.tensors`."""
    named: dict[str, nn.Parameter] = {}
    for layer, module in layers.items():
        named.update({f"{layer}.{kind}": f.weight for kind, f in factors_in(module).items()})
    for layer, module in layers.items():
        if isinstance(module, Adapted):
            named.update({f"{layer}.{name}": p for name, p in module.trained().items()})
    return named


@torch.no_grad()
def write_state(layers: dict[str, nn.Module], state: AdapterState) -> None:
    """Copy a state into the model, in place; raises KeyError for a missing layer.

    The model takes the state's ranks, its scale stays that of the settings' rank.

    A layer with a dense update W gets the frozen weight W0 + s W. Its W0 is kept aside, on the device
    and only for such layers, from the first time on, and comes back with a state that has no W.
    """
    for layer, module in layers.items():
        for kind, factor in factors_in(module).items():
            value = getattr(state.factors[layer], kind)
            if factor.weight.shape != value.shape:  # a client of another rank
                factor.weight.data = torch.empty_like(value, memory_format=torch.contiguous_format)
            factor.weight.copy_(value)
        if isinstance(module, Adapted):
            for name, parameter in module.trained().items():
                parameter.copy_(state.extra[f"{layer}.{name}"])
        _write_base(module, state.base.get(layer))
        if isinstance(module, MagnitudeAndDirection):
            module.renormalise()


def _write_base(module: nn.Module, W: torch.Tensor | None) -> None:
    """Set the frozen weight of a LoRA layer to W0 + s W, or back to W0 without a W."""
    kept = dict(module.named_buffers(recurse=False)).get(ORIGINAL)
    if W is None and kept is None:
        return
    refuse_stored(module.get_base_layer())  # type: ignore[operator]
    weight = weight_of(module.get_base_layer())  # type: ignore[operator]
    if kept is None:
        kept = weight.clone()
        module.register_buffer(ORIGINAL, kept, persistent=False)
    if W is None:
        weight.copy_(kept)
        return
    scale = module.scaling[NAME]  # type: ignore[index]
    # Summed in W's precision: the frozen weight may be of a lower one.
    weight.copy_(kept.to(W.dtype) + scale * W)


def frozen_weight(module: nn.Module) -> Tensor:
    """Return an adapted layer's frozen weight (d_out, d_in), without any update W."""
    kept = dict(module.named_buffers(recurse=False)).get(ORIGINAL)
    return weight_of(module.get_base_layer()) if kept is None else kept  # type: ignore[operator]


def read_state(layers: dict[str, nn.Module]) -> dict[str, LowRank]:
    """Return copies of the model's factors, in the layers' order."""
    found = {}
    for layer, module in layers.items():
        factors = {k: f.weight.detach().clone() for k, f in factors_in(module).items()}
        if factors:
            found[layer] = LowRank(**factors)
    return found


def extra_of(layers: Mapping[str, nn.Module]) -> dict[str, Tensor]:
    """Return copies of what trains of the layers beside LoRA factors."""
    return {
        f"{layer}.{name}": p.detach().clone()
        for layer, module in layers.items()
        if isinstance(module, Adapted)
        for name, p in module.trained().items()
    }
