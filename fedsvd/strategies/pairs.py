"""Which adapters a strategy can work with, and why not with the others."""

from collections.abc import Iterator
from pathlib import Path
from typing import Any

from flwr.serverapp.strategy import Strategy as FlowerStrategy
from omegaconf import OmegaConf

from fedsvd.adapters.base import Adapter
from fedsvd.adapters.build import build_adapter, check_inputs
from fedsvd.errors import InputError, wrong
from fedsvd.factors import factors_of
from fedsvd.settings import AdapterSettings, Settings, StrategySettings
from fedsvd.settings.model import ADAPTERS
from fedsvd.strategies.base import Strategy
from fedsvd.strategies.build import build_strategy


def refusal(strategy: FlowerStrategy, adapter: Adapter) -> str | None:
    """Return why the strategy cannot work with the adapter, or None if it can.

    A strategy `needs` certain tensors, by default the factors A and B. One that drops part of B A
    (its `fixed_point` is False) would lose what an adapter that `absorbs` moved there from the
    pretrained weight. One that trains A would undo that layers hold one. Flower's own strategies
    average whatever trains.
    """
    if not isinstance(strategy, Strategy):
        return None
    rule, kind = type(strategy).__name__, type(adapter).__name__
    if not set(strategy.needs) <= set(adapter.tensors):
        return (
            f"{rule} works on {' and '.join(strategy.needs)}, and {kind} trains "
            f"{', '.join(adapter.tensors)}"
        )
    if adapter.one_A and "A" in strategy.trains:
        return f"{rule} trains A layer by layer, and {kind} holds one A for a group of layers"
    if adapter.absorbs and not strategy.fixed_point:
        return f"{rule} drops part of B A, where {kind} keeps part of the pretrained weight"
    return None


def check_pair(settings: Settings, strategy: FlowerStrategy, folder: Path) -> None:
    """Raise InputError, with the reason and what can, if adapter and strategy do not go together.

    Also if the adapter does not go with the partition or the clients' ranks. `folder` is that of the
    configurations, whose strategies are the ones named.
    """
    if settings.adapter.name == "none":
        return
    adapter = build_adapter(settings.adapter)
    check_inputs(settings)
    if settings.clients.ranks and (adapter.absorbs or "A" not in adapter.tensors):
        raise InputError(
            f"clients.ranks: {settings.adapter.label} cannot be cut to a client's rank: its layers "
            "have no factors, or part of the pretrained weight in them"
        )
    if adapter.one_A and "A" in factors_of(settings) and "A" not in getattr(strategy, "trains", ()):
        raise wrong(
            "training.factors", settings.training.factors,
            f"'auto' or 'B' with {settings.adapter.label}, which holds one A for a group of layers",
        )  # fmt: skip
    why = refusal(strategy, adapter)
    if why is None:
        return
    able = [n for n, other in configured(folder) if refusal(other, adapter) is None]
    raise InputError(
        f"adapter: {settings.adapter.label} does not go with strategy {settings.strategy.target}: "
        f"{why}; strategies that can: {', '.join(able)}, and Flower's own"
    )


def configured(folder: Path) -> Iterator[tuple[str, FlowerStrategy]]:
    """Yield the name and the strategy of every file of the group strategy/, as it is configured."""
    for path in sorted((folder / "strategy").glob("*.yaml")):
        config = OmegaConf.create({"seed": 0, "strategy": OmegaConf.load(path)})
        whole: Any = OmegaConf.to_container(config, resolve=True)
        options = whole["strategy"]
        yield path.stem, build_strategy(StrategySettings(options.pop("_target_"), options))


def table(folder: Path) -> dict[str, list[str]]:
    """Return the names of the adapters that each configured strategy can work with.

    `folder` is that of the configurations.
    """
    names = sorted(p.stem for p in (folder / "adapter").glob("*.yaml") if p.stem in ADAPTERS)
    adapters = {name: build_adapter(AdapterSettings(name)) for name in names}
    return {
        name: [n for n, adapter in adapters.items() if refusal(strategy, adapter) is None]
        for name, strategy in configured(folder)
    }
