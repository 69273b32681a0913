"""Which of the factors A, B clients train: what a strategy declares, what the settings say."""

from abc import ABC
from typing import ClassVar

from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsvd.plugins import find_plugin
from fedsvd.settings import Settings


class TrainsFactors(FlowerStrategy, ABC):
    """A Flower strategy that says which of "A", "B" its clients train and send."""

    trains: ClassVar[tuple[str, ...]] = ("B",)


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
    return found.trains if issubclass(found, TrainsFactors) else ("B",)
