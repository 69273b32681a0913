"""Checks of single values, shared by all groups of settings."""

import math

from fedsvd.errors import one_of, wrong


def choice(key: str, value: str, names: tuple[str, ...]) -> None:
    """Raise InputError unless `value` is one of `names`."""
    if value not in names:
        raise one_of(key, value, names)


def positive(key: str, value: float) -> None:
    """Raise InputError unless 0 < value < inf."""
    if not 0 < value < math.inf:
        raise wrong(key, value, "a number above 0")


def at_least(key: str, value: int, least: int) -> None:
    """Raise InputError unless value >= least."""
    if value < least:
        raise wrong(key, value, f"a whole number of at least {least}")


def different(key: str, values: tuple[str, ...] | None) -> None:
    """Raise InputError unless there is at least one value, all different; None is allowed."""
    if values is not None and (not values or len(set(values)) < len(values)):
        raise wrong(key, list(values), "at least one id, no two of them equal")
