"""From `strategy._target_` to a strategy, ours or any of Flower's."""

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsvd.errors import InputError, one_of, wrong
from fedsvd.factors import find_class
from fedsvd.kinds import fitting
from fedsvd.settings import StrategySettings
from fedsvd.settings.flower import FIXED
from fedsvd.strategies.base import Strategy
from fedsvd.strategies.server import ServerOptimizer
from fedsvd.strategies.stock import check_class

SERVER = "server"  # the option that any averaging strategy takes


def options_of_server(
    settings: StrategySettings, found: type[FlowerStrategy]
) -> dict[str, Any] | None:
    """Return the settings of the server optimiser, or None if the strategy of ours has none."""
    server = settings.options.get(SERVER)
    if server is None or not issubclass(found, Strategy):
        return None
    names = [f.name for f in dataclasses.fields(ServerOptimizer)]
    if not isinstance(server, Mapping):
        raise wrong(f"strategy.{SERVER}", server, f"null or settings of {', '.join(names)}")
    for name in server:
        if name not in names:
            raise one_of(f"strategy.{SERVER}.{name}", name, names)
    for name in ("name", "lr"):
        if name not in server:
            raise InputError(f"strategy.{SERVER}.{name}: is missing; there is no default")
    if not found.averages:
        raise InputError(
            f"strategy.{SERVER}: {settings.target} does not average factors, so no server optimiser "
            "can follow them; leave it out or choose fedavg, ffa, fedsa, fedsb, rolora, la_lora, "
            "fedrot or align"
        )
    return fitting(f"strategy.{SERVER}", ServerOptimizer, server)


def build_strategy(settings: StrategySettings, given: Collection[str] = ()) -> FlowerStrategy:
    """Return the configured strategy.

    `given` are the options that the user named himself. An option that only the configuration group
    holds and that the class does not take (as when `strategy._target_` alone is overridden) is left
    out; one that the user gave is an error.
    """
    found = find_class(settings.target)
    check_class(settings.target, found, settings.options)
    parameters = inspect.signature(found).parameters
    server = options_of_server(settings, found)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    options = {k: v for k, v in settings.options.items() if k != SERVER or server is None}
    for name in list(options):
        if name not in parameters and not takes_any:
            if name in given:
                raise one_of(f"strategy.{name}", name, parameters)
            del options[name]
    if not issubclass(found, Strategy):  # that it takes every node of the grid, and does not wait
        for name, (value, _) in FIXED.items():
            if name in parameters and value is not None:
                options.setdefault(name, value)
    for name, p in parameters.items():
        named = p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        if named and p.default is p.empty and name not in options:
            raise InputError(
                f"strategy.{name}: is missing; {settings.target} has no default for it"
            )
    options = fitting("strategy", found, options)
    try:
        built = found(**options)
        if server is not None:
            built.server = ServerOptimizer(**server)  # type: ignore[attr-defined]
        return built
    except (TypeError, ValueError) as error:
        raise InputError(f"strategy: {settings.target} refused {options}: {error}") from error
