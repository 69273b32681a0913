"""A conversation of a row: messages with roles, checked and written as one text."""

import json
from typing import Any

from fedsvd.errors import InputError

LEARNT = "assistant"  # the role whose turns are learnt


def conversation(value: Any, what: str) -> str:
    """Return a list of messages as JSON, [{"role": ..., "content": ...}, ...], its keys in order.

    `value` is such a list, or its JSON as a text (the cell of a CSV file). Raises InputError that
    begins with `what`: no such list, a message without role or content, no turn of the assistant.
    """
    if isinstance(value, str):
        try:
            value = json.loads(value)
        except ValueError as error:
            raise InputError(f"{what} holds no messages but {short(value)}") from error
    if not isinstance(value, (list, tuple)) or not value:
        raise InputError(f"{what} holds no messages but {short(value)}")
    found = []
    for number, message in enumerate(value, 1):
        told = message if isinstance(message, dict) else {}
        for key in ("role", "content"):
            if not isinstance(told.get(key), str) or not told[key].strip():
                raise InputError(
                    f"{what}: message {number} has no {key} but {short(told.get(key))}"
                )
            try:
                told[key].encode("utf-8")
            except UnicodeEncodeError as error:
                raise InputError(f"{what}: message {number} holds half a character") from error
        found.append({"role": told["role"], "content": told["content"]})
    if not any(message["role"] == LEARNT for message in found):
        roles = ", ".join(dict.fromkeys(message["role"] for message in found))
        raise InputError(
            f"{what}: no message has the role {LEARNT!r}, so nothing can be learnt; it has {roles}"
        )
    return json.dumps(found, ensure_ascii=False)


def messages_of(text: str) -> list[dict[str, str]]:
    """Return the messages that `conversation` has written."""
    found: list[dict[str, str]] = json.loads(text)
    return found


def short(value: object) -> str:
    """Return a value as it is written in code, cut after 80 characters, for messages."""
    text = repr(value)
    return text if len(text) <= 80 else f"{text[:77]}..."
