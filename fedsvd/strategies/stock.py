"""Flower's own strategies and those derived from them: what can be used here, with which options."""

from collections.abc import Mapping
from typing import Any

from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsvd.errors import InputError, wrong
from fedsvd.settings import Settings
from fedsvd.settings.flower import FIXED, HELD, NUMBERS, STOCK, Stock, usable
from fedsvd.strategies.fedsb import FedSb


def flowers(found: Any) -> bool:
    """Return whether a class or function is one of Flower's, and not one derived elsewhere."""
    return found.__module__.split(".")[0] == "flwr"


def stock_of(found: type[FlowerStrategy]) -> Stock | None:
    """Return what becomes of the class of Flower's that `found` is or is derived from.

    None for ours, and for classes that derive from Flower's interface alone.
    """
    nearest = next((c for c in found.__mro__ if flowers(c)), FlowerStrategy)
    if nearest is FlowerStrategy and found is not FlowerStrategy:
        return None
    unknown = Stock(refused="is not known to this version of fedsvd")
    stock = STOCK.get(nearest.__name__, unknown)
    if stock is STOCK["FedOpt"] and found is not nearest:
        return Stock()  # a base class, which was made to be derived from
    return stock


def check_class(target: str, found: type[FlowerStrategy], options: Mapping[str, Any]) -> None:
    """Raise InputError if the class cannot be used here, or an option of Flower's cannot be set."""
    stock = stock_of(found)
    if stock is None:
        return
    if stock.refused:
        raise InputError(
            f"strategy._target_: {target} {stock.refused}; of Flower's can be used: "
            f"{', '.join(usable())}"
        )
    for name, value in options.items() if flowers(found) else ():
        if name in FIXED and value != FIXED[name][0]:
            raise _fixed(name, value)


def check_stock(settings: Settings, strategy: FlowerStrategy) -> None:
    """Raise InputError if a built strategy of Flower's kind would not do here what it says.

    Its numbers must be in their ranges, the names of its records those that clients use, and its
    learning rate of clients the one that they train at. One that chooses among clients must have
    several, and one that weighs them by their losses is no post-processing of what they release.
    """
    stock, held = stock_of(type(strategy)), vars(strategy)
    if stock is None:
        return
    draws = not flowers(type(strategy).configure_train)  # a derived class that draws clients itself
    for name in HELD[3:] if draws else HELD:
        if name in held and held[name] != FIXED[name][0]:
            raise _fixed(name, held[name])
    for name, (whole, test, words) in NUMBERS.items():
        if name not in held:
            continue
        value, kind = held[name], int if whole else (int, float)
        if not isinstance(value, kind) or isinstance(value, bool) or not test(value):
            raise wrong(f"strategy.{name}", value, words)
    _check_rate(settings, stock)
    _check_unit(settings, stock)
    _check_number(settings, stock, held)


def most_replies(settings: Settings) -> tuple[str, int]:
    """Return the most clients that a round can have, and the key that says so."""
    clients = settings.clients
    if clients.participation in ("all", "poisson"):
        return "clients.number", clients.number
    return "clients.per_round", clients.per_round


def _fixed(name: str, value: object) -> InputError:
    allowed, why = FIXED[name]
    told = "null" if allowed is None else repr(allowed)
    return wrong(f"strategy.{name}", value, f"{told} here: {why}")


def _check_rate(settings: Settings, stock: Stock) -> None:
    stated = settings.strategy.options.get(stock.rate) if stock.rate else None
    if stated is not None and stated != settings.training.lr:
        raise wrong(
            f"strategy.{stock.rate}", stated,
            f"training.lr = {settings.training.lr:g}, at which clients train",
        )  # fmt: skip


def _check_unit(settings: Settings, stock: Stock) -> None:
    target, unit = settings.strategy.target.rpartition(".")[2], settings.privacy.unit
    if stock.among and unit == "client":
        raise InputError(
            f"strategy: {target} chooses among clients, and with privacy.unit=client the server has "
            "their one noised mean; use another strategy"
        )
    if stock.losses and unit != "none":
        raise InputError(
            f"strategy: {target} is given every client's loss on its own examples, which is outside "
            f"the guarantee, so privacy.unit={unit} would not hold; use privacy=none or another "
            "strategy"
        )


def _check_number(settings: Settings, stock: Stock, held: Mapping[str, Any]) -> None:
    """Raise InputError if no round can have the replies that the rule takes."""
    key, most = most_replies(settings)
    chosen, bad = held.get("num_nodes_to_select", 1), held.get("num_malicious_nodes", 0)
    if stock.among and chosen > most:
        raise wrong("strategy.num_nodes_to_select", chosen, f"at most {key} = {most}")
    if stock.among and bad >= most:
        raise wrong("strategy.num_malicious_nodes", bad, f"below {key} = {most}")
    if stock is STOCK["Bulyan"] and most < 4 * bad + 3:
        raise wrong(
            key, most,
            f"at least 4 f + 3 = {4 * bad + 3} with Bulyan and strategy.num_malicious_nodes={bad}, "
            "or nothing is aggregated",
        )  # fmt: skip


def notes(settings: Settings, strategy: FlowerStrategy) -> list[str]:
    """Return what a strategy does less here than its name says, a line each."""
    stock, held, found = stock_of(type(strategy)), vars(strategy), []
    if isinstance(strategy, FedSb) and settings.adapter.name == "lora_xs":
        found.append(
            "strategy=fedsb with adapter=lora_xs is averaged LoRA-XS; Fed-SB starts from a gradient, "
            "which is adapter=lora_sb"
        )
    key, most = most_replies(settings)
    if stock is STOCK["FedProx"]:
        if held["proximal_mu"] == 0:
            found.append("strategy.proximal_mu is 0, with which FedProx is FedAvg")
        elif settings.training.local_steps == 1:
            found.append(
                "training.local_steps is 1: the proximal term of FedProx is zero in a round's first "
                "step, so that this run is FedAvg's"
            )
    if stock is STOCK["FedTrimmedAvg"] and int(held["beta"] * most) == 0:
        found.append(f"FedTrimmedAvg cuts nothing off: floor(strategy.beta n) = 0 for n = {key}")
    if stock in (STOCK["Krum"], STOCK["MultiKrum"]):
        bad = held["num_malicious_nodes"]
        if most < 2 * bad + 3:
            name = settings.strategy.target.rpartition(".")[2]
            found.append(
                f"{name} guarantees nothing: it needs 2 f + 3 = {2 * bad + 3} clients in a round for "
                f"f = strategy.num_malicious_nodes; {key}={most}"
            )
    return found
