"""The endings of a row, of which one is right: checked, and written as one text."""

import json
from typing import Any

from fedsvd.data.conversation import short
from fedsvd.errors import InputError


def written(value: Any, what: str) -> str:
    """Return a list of endings as JSON.

    `value` is such a list, or its JSON as a text (the cell of a CSV file). Raises InputError that
    begins with `what`: no list, fewer than two, one that is no text or empty.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(f"{what} holds no list of endings but {short(value)}") from error
    if not isinstance(value, (list, tuple)):
        raise InputError(f"{what} holds no list of endings but {short(value)}")
    if len(value) < 2:
        raise InputError(f"{what} holds {len(value)} endings; at least 2 are needed to choose from")
    for number, ending in enumerate(value):
        if not isinstance(ending, str) or not ending.strip():
            raise InputError(f"{what}: ending {number} is no text but {short(ending)}")
        try:
            ending.encode("utf-8")
        except UnicodeEncodeError as error:
            raise InputError(f"{what}: ending {number} holds half a character") from error
    return json.dumps(list(value), ensure_ascii=False)


def endings_of(text: str) -> list[str]:
    """Return the endings that `written` has written."""
    found: list[str] = json.loads(text)
    return found


def joined(context: str, ending: str) -> str:
    """Return what follows the context: the ending, after a blank unless there is one already."""
    return ending if context[-1:].isspace() or ending[:1].isspace() else f" {ending}"
