"""Checks of numbers that several rules take as options."""

from fedsvd.errors import wrong


def check_tolerance(value: float) -> None:
    """Raise InputError unless `strategy.tolerance` is between 0 and 1."""
    if not 0 < value < 1:
        raise wrong("strategy.tolerance", value, "between 0 and 1")


def check_beta(key: str, value: float) -> None:
    """Raise InputError unless `value`, of the setting `key`, is a number in [0, 1)."""
    if not isinstance(value, (int, float)) or not 0 <= value < 1:
        raise wrong(key, value, "in [0, 1)")
