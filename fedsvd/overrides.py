"""Values of Python as the texts that Hydra reads: `rounds=2`, `data.labels=['no','yes']`."""

import re
from collections.abc import Mapping, Sequence
from pathlib import PurePath
from typing import Any

import numpy as np

from fedsvd.errors import InputError, wrong

ALLOWED = "None, true or false, a number, a text, a path, or a list or dictionary of such"
KEY = re.compile(r"[+~]{0,2}[\w.@:/-]+")
SPECIAL = re.compile(r"[\\()\[\]{}:=, \t]")  # what a dictionary's key has a backslash before


def as_overrides(texts: Sequence[str], values: Mapping[str, Any]) -> list[str]:
    """Return overrides as Hydra's command line takes them: the texts, then a line for each value.

    `experiment="quickstart"` stands for `+experiment=quickstart`. Raises InputError.
    """
    for text in texts:
        if not isinstance(text, str) or text.startswith("-") or not re.search("[=~]", text):
            raise wrong("overrides", text, "a text KEY=VALUE, as on the command line")
    return [*texts, *(override(key, value) for key, value in values.items())]


def override(key: str, value: Any) -> str:
    """Return `key=value` for a value of Python; InputError if there is no such text."""
    return f"{_key(key)}={literal(key, value)}"


def choices(key: str, values: Any) -> str:
    """Return `key=a,b,c`, the values of a sweep.

    A text is taken as it is: it is one of Hydra's own, `interval(0.1, 1)`. Raises InputError.
    """
    if isinstance(values, str):
        return f"{_key(key)}={values}"
    if isinstance(values, np.ndarray):
        values = values.tolist()
    if not isinstance(values, (Sequence, range)) or not values:
        raise wrong(f"grid: {key}", values, "a list of values, or a text such as 'interval(0, 1)'")
    return f"{_key(key)}={','.join(literal(key, value) for value in values)}"


def literal(key: str, value: Any) -> str:
    """Return a value as Hydra's grammar writes it; `key` is for the error."""
    if isinstance(value, (np.generic, np.ndarray)):
        value = value.tolist()
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, (int, float)):
        return repr(value)
    if isinstance(value, (str, PurePath)):
        return quoted(str(value))
    if isinstance(value, Mapping):
        pairs = (f"{_inner(key, k)}:{literal(key, v)}" for k, v in value.items())
        return f"{{{','.join(pairs)}}}"
    if isinstance(value, (list, tuple)):
        return f"[{','.join(literal(key, one) for one in value)}]"
    raise InputError(f"{key}: a {type(value).__name__} cannot be given; it must be {ALLOWED}")


def quoted(text: str) -> str:
    """Return a text in Hydra's quotes, where a backslash counts only before a quote or the end."""
    doubled = re.sub(r"(\\*)('|\Z)", lambda m: m[1] * 2 + ("\\'" if m[2] else ""), text)
    return f"'{doubled}'"


def unquoted(text: str) -> str:
    """Return what a text in Hydra's quotes says, the inverse of `quoted`; others stay as they are."""
    if len(text) < 2 or text[0] not in "'\"" or text[-1] != text[0]:
        return text
    found = re.compile(rf"((?:\\\\)*)(\\{text[0]}|\Z)")
    return found.sub(lambda m: m[1][::2] + m[2][-1:], text[1:-1])


def _key(key: Any) -> str:
    if not isinstance(key, str) or not KEY.fullmatch(key):
        raise wrong("overrides", key, "a key, as 'rounds' or 'privacy.epsilon'")
    return f"+{key}" if key == "experiment" else key


def _inner(key: str, inner: Any) -> str:
    if isinstance(inner, bool) or not isinstance(inner, (str, int)) or inner == "":
        raise wrong(f"{key}: a dictionary's key", inner, "a text or a whole number")
    return SPECIAL.sub(lambda m: "\\" + m[0], str(inner))
