"""Values of a configuration, held against the annotations of what they are given to."""

import inspect
import types
from collections.abc import Callable, Mapping
from typing import Any, Literal, Union, get_args, get_origin, get_type_hints

from fedsvd.errors import InputError, wrong

NAMES = {int: "a whole number", float: "a number", str: "a text", bool: "true or false"}


def converted(key: str, value: Any, kind: Any) -> Any:
    """Return `value` as `kind`, or raise InputError; only lossless conversions are made.

    Of several kinds the first that takes the value is chosen.
    """
    if get_origin(kind) in (types.UnionType, Union):
        return _one_of(key, value, get_args(kind))
    origin = get_origin(kind) or kind
    if origin is Literal:
        return _one_of(key, value, (kind,))
    if origin is tuple:
        if isinstance(value, str):
            value = [value]
        if not isinstance(value, (list, tuple)):
            raise wrong(key, value, "a list")
        return tuple(converted(key, v, get_args(kind)[0]) for v in value)
    if origin is dict:
        if not isinstance(value, Mapping):
            raise wrong(key, value, "a mapping")
        return dict(value)
    if origin is bool and isinstance(value, bool):
        return value
    if origin is int and isinstance(value, (int, float)) and not isinstance(value, bool):
        if value == value // 1:  # not so of infinity and NaN
            return int(value)
    elif origin is float and isinstance(value, (int, float)) and not isinstance(value, bool):
        return float(value)
    elif origin is str and isinstance(value, (str, int, float)) and not isinstance(value, bool):
        return str(value)
    raise wrong(key, value, NAMES[origin])


def _one_of(key: str, value: Any, kinds: tuple[Any, ...]) -> Any:
    """Return `value` as the first of `kinds` that takes it."""
    words = [w for k in kinds if get_origin(k) is Literal for w in get_args(k)]
    if (value is None and type(None) in kinds) or value in words:
        return value
    rest = [k for k in kinds if k is not type(None) and get_origin(k) is not Literal]
    if len(rest) == 1 and not words:  # its own error says more: which member of a list is wrong
        return converted(key, value, rest[0])
    allowed = [str(w) for w in words]
    for kind in rest:
        try:
            return converted(key, value, kind)
        except InputError as error:
            allowed.append(error.allowed)
    raise wrong(key, value, ", or ".join(allowed))


def fitting(group: str, found: Callable[..., Any], options: Mapping[str, Any]) -> dict[str, Any]:
    """Return the options as the constructor of `found` annotates them: 2.0 as the whole number 2.

    A parameter that has no annotation, or one of another kind than texts, numbers, booleans and
    lists of them, takes any value. Raises InputError that names the key `group.name`.
    """
    try:
        hints = get_type_hints(found.__init__ if inspect.isclass(found) else found)
    except (NameError, TypeError, AttributeError):  # names that exist for a type checker alone
        return dict(options)
    parameters = inspect.signature(found).parameters
    fitted = {}
    for name, value in options.items():
        default = parameters[name].default if name in parameters else None
        takes = name in hints and _plain(hints[name]) and (value is not None or default is not None)
        made = converted(f"{group}.{name}", value, hints[name]) if takes else value
        # An error of the class itself shall show a number as it was given: 0, not 0.0.
        fitted[name] = value if isinstance(made, float) else made
    return fitted


def _plain(kind: Any) -> bool:
    """Whether `kind` is made of texts, numbers, booleans, fixed words and lists of them."""
    origin, inner = get_origin(kind) or kind, get_args(kind)
    if origin in (types.UnionType, Union):
        return all(k is type(None) or _plain(k) for k in inner)
    if origin is tuple:
        return len(inner) == 2 and inner[1] is Ellipsis and _plain(inner[0])
    return origin is Literal or origin in NAMES
