"""Options of classes are held against the annotations of their constructors."""

from typing import Any, Literal

import pytest

from fedsvd.adapters.build import build_adapter
from fedsvd.composing import settings_of
from fedsvd.errors import InputError
from fedsvd.kinds import converted, fitting
from fedsvd.settings import Settings
from fedsvd.strategies.build import build_strategy


@pytest.mark.parametrize(
    ("told", "key", "allowed"),
    [
        ("adapter=gradient adapter.whiten=true", "adapter.whiten", "a number"),
        ("adapter=pissa adapter.niter=1.5", "adapter.niter", "a whole number"),
        ("adapter=eva adapter.centre=1", "adapter.centre", "true or false"),
        ("adapter=effort adapter.energy=high", "adapter.energy", "a number"),
        ("adapter=xkv adapter.blocks=true", "adapter.blocks", "a whole number"),
        ("strategy=fedsvd strategy.period=2.5", "strategy.period", "a whole number"),
        ("strategy=fedsvd strategy.period=true", "strategy.period", "a whole number"),
        ("strategy=fedsvd strategy.period=null", "strategy.period", "a whole number"),
        ("strategy=fedsvd strategy.strength=true", "strategy.strength", "a number"),
        ("strategy=fedsvd_refresh strategy.keep=true", "strategy.keep", "a whole number"),
        ("strategy=la_lora strategy.projected=1", "strategy.projected", "true or false"),
        ("strategy=fedavg +strategy.server={name:adam,lr:true}", "strategy.server.lr", "a number"),
        (
            "strategy=fedavg +strategy.server={name:mfac,lr:1,window:2.5}",
            "strategy.server.window", "a whole number",
        ),
        (
            "strategy._target_=flwr.serverapp.strategy.FedProx +strategy.proximal_mu=true",
            "strategy.proximal_mu", "a number",
        ),
        (
            "strategy._target_=flwr.serverapp.strategy.Krum +strategy.num_malicious_nodes=1.5",
            "strategy.num_malicious_nodes", "a whole number",
        ),
    ],
)  # fmt: skip
def test_a_value_of_another_kind_names_the_key(told: str, key: str, allowed: str) -> None:
    with pytest.raises(InputError) as caught:
        build(settings_of(told.split()))
    assert (caught.value.key, caught.value.allowed) == (key, allowed)


def build(settings: Settings) -> None:
    build_adapter(settings.adapter)
    build_strategy(settings.strategy)


def test_a_whole_number_is_one_however_it_is_written() -> None:
    settings = settings_of(["strategy=fedsvd", "strategy.period=2.0"])
    built: Any = build_strategy(settings.strategy)
    assert (built.period, type(built.period)) == (2, int)


class Own:
    """A class as users write one: some arguments without a kind, or with a wide one."""

    def __init__(
        self,
        size: int = None,  # type: ignore[assignment]  # noqa: RUF013
        rates: tuple[float, ...] = (),
        how: Literal["mean", "sum"] | float = "mean",
        free=3,  # type: ignore[no-untyped-def]
        table: dict[str, int] | None = None,
        **more: Any,
    ) -> None:
        self.size = size


@pytest.mark.parametrize(
    "options",
    [
        {"size": None}, {"size": 3}, {"how": "sum"}, {"how": 0.5}, {"free": True}, {"free": "a"},
        {"table": {"a": 1}}, {"table": 7}, {"other": True}, {"rates": (1.0, 2.0)},
    ],
)  # fmt: skip
def test_what_has_no_simple_kind_is_taken_as_it_is(options: dict[str, Any]) -> None:
    assert fitting("strategy", Own, options) == options


@pytest.mark.parametrize(
    ("options", "allowed"),
    [
        ({"size": 1.5}, "a whole number"),
        ({"size": float("nan")}, "a whole number"),
        ({"size": float("inf")}, "a whole number"),
        ({"how": "most"}, "mean, or sum, or a number"),
        ({"rates": 3}, "a list"),
        ({"rates": [True]}, "a number"),
    ],
)
def test_what_has_a_simple_kind_must_be_of_it(options: dict[str, Any], allowed: str) -> None:
    with pytest.raises(InputError) as caught:
        fitting("strategy", Own, options)
    assert caught.value.allowed == allowed


def test_of_several_kinds_the_first_that_takes_the_value_is_chosen() -> None:
    assert converted("k", "binomial", float | str) == "binomial"
    found = converted("k", 2, float | str)
    assert (found, type(found)) == (2.0, float)
