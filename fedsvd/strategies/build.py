"""From `strategy._target_` to a strategy, ours or any of Flower's."""

import dataclasses
import inspect
from collections.abc import Collection, Mapping
from typing import Any

from flwr.serverapp.strategy import Bulyan
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsvd.errors import InputError, one_of, wrong
from fedsvd.plugins import find_plugin
from fedsvd.settings import Settings, StrategySettings
from fedsvd.strategies.base import Strategy
from fedsvd.strategies.server import ServerOptimizer

# What a stock Flower strategy needs to take all nodes that the grid shows and to leave evaluation
# to the server; each is passed only if its constructor has it and the user has not set it.
STOCK: Mapping[str, Any] = {
    "fraction_train": 1.0,
    "fraction_evaluate": 0.0,
    "min_train_nodes": 1,
    "min_evaluate_nodes": 0,
    "min_available_nodes": 1,
}


SERVER = "server"  # the option that any averaging strategy takes


def find_class(target: str) -> type[FlowerStrategy]:
    """Return the strategy class at an import path, or raise InputError that says what is wrong."""
    advice = "derive it from fedsvd.strategies.Strategy and write aggregate(self, state, updates)"
    return find_plugin("strategy._target_", target, FlowerStrategy, "a strategy", advice)


def factors_of(settings: Settings) -> tuple[str, ...]:
    """Return which of "A", "B" clients train and send.

    `training.factors` decides; "auto" is what the strategy declares, and B alone for a stock Flower
    strategy.
    """
    if settings.training.factors != "auto":
        return tuple(settings.training.factors)
    found = find_class(settings.strategy.target)
    return found.trains if issubclass(found, Strategy) else ("B",)


def check_use(settings: Settings, strategy: FlowerStrategy | None = None) -> None:
    """Raise InputError if the strategy cannot be used under these settings.

    Under privacy a server step must be post-processing of what clients released; and one that relies
    on equal A cannot have clients train A, nor any other what it does not send back to them. One that
    looks at public texts (`strategy`, the built one, can tell) must have some, and Bulyan as many
    replies as its rule takes.
    """
    found = find_class(settings.strategy.target)
    rule = found if strategy is None else strategy  # a constructor may set what a class declares
    if isinstance(strategy, Strategy) and strategy.needs_public and not settings.data.public:
        raise wrong(
            "data.public", 0,
            f"at least 1 with {settings.strategy.target}, which looks at so many training examples "
            "that no client then holds",
        )  # fmt: skip
    if isinstance(strategy, Bulyan):
        _check_bulyan(settings, strategy)
    ranks = settings.clients.ranks
    if ranks is not None and not (issubclass(found, Strategy) and found.any_rank):
        raise wrong(
            "clients.ranks", list(ranks),
            f"null with {settings.strategy.target}, whose clients must have one rank; flora, "
            "flexlora and hetlora allow several",
        )  # fmt: skip
    if not issubclass(found, Strategy):
        return
    if settings.privacy.unit != "none" and not rule.post_processing:  # type: ignore[union-attr]
        raise InputError(
            f"strategy: the server step of {settings.strategy.target} uses more than what clients "
            f"released (post_processing is False), so privacy.unit={settings.privacy.unit} would not "
            "hold; use privacy=none or another strategy"
        )
    trains = factors_of(settings)
    if found.needs_equal_A and "A" in trains:
        raise wrong(
            "training.factors",
            settings.training.factors,
            f"'auto' or 'B' with {settings.strategy.target}, whose clients must hold one A",
        )
    lost = [kind for kind in trains if kind not in (*found.keeps, *found.broadcasts)]
    if lost:
        raise InputError(
            f"training.factors: {settings.training.factors!r} has clients train {lost[0]}, which "
            f"{settings.strategy.target} averages but does not send back to them (its broadcasts: "
            f"{', '.join(found.broadcasts) or 'none'})"
        )


def _check_bulyan(settings: Settings, strategy: Bulyan) -> None:
    """Raise InputError if no round can have the 4 f + 3 replies without which Bulyan does nothing."""
    clients, need = settings.clients, 4 * strategy.num_malicious_nodes + 3
    if settings.privacy.unit == "client":
        raise InputError(
            "strategy: Bulyan chooses among clients, and with privacy.unit=client the server has "
            "their one noised mean; use another strategy"
        )
    every = clients.participation in ("all", "poisson")
    most = clients.number if every else clients.per_round
    if most < need:
        key = "clients.number" if every else "clients.per_round"
        raise wrong(
            key, most,
            f"at least 4 f + 3 = {need} with Bulyan and strategy.num_malicious_nodes="
            f"{strategy.num_malicious_nodes}, or nothing is aggregated",
        )  # fmt: skip


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
    return dict(server)


def build_strategy(settings: StrategySettings, given: Collection[str] = ()) -> FlowerStrategy:
    """Return the configured strategy.

    `given` are the options that the user named himself. An option that only the configuration group
    holds and that the class does not take (as when `strategy._target_` alone is overridden) is left
    out; one that the user gave is an error.
    """
    found = find_class(settings.target)
    parameters = inspect.signature(found).parameters
    server = options_of_server(settings, found)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    options = {k: v for k, v in settings.options.items() if k != SERVER or server is None}
    for name in list(options):
        if name not in parameters and not takes_any:
            if name in given:
                raise one_of(f"strategy.{name}", name, parameters)
            del options[name]
    if not issubclass(found, Strategy):
        for name, value in STOCK.items():
            if name in parameters:
                options.setdefault(name, value)
    try:
        built = found(**options)
        if server is not None:
            built.server = ServerOptimizer(**server)  # type: ignore[attr-defined]
        return built
    except (TypeError, ValueError) as error:
        raise InputError(f"strategy: {settings.target} refused {options}: {error}") from error
