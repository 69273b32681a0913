"""From a configuration's adapter group to an adapter, ours or a user's own."""

import importlib
import inspect

from fedsvd.adapters.base import Adapter
from fedsvd.errors import InputError, nearest, one_of
from fedsvd.settings import AdapterSettings
from fedsvd.settings.model import ADAPTERS


def find_adapter(target: str) -> type[Adapter]:
    """Return the adapter class at an import path, or raise InputError that says what is wrong."""
    module_name, _, name = target.rpartition(".")
    try:
        module = importlib.import_module(module_name)
    except Exception as error:  # a user's module may fail in any way while it is imported
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"adapter._target_: {target!r} cannot be imported ({reason})") from error
    found = getattr(module, name, None)
    if found is None:
        classes = [n for n, v in vars(module).items() if inspect.isclass(v)]
        near = nearest(name, classes)
        hint = f"; did you mean {module_name}.{near}?" if near else ""
        raise InputError(f"adapter._target_: module {module_name!r} has no {name!r}{hint}")
    if not inspect.isclass(found) or not issubclass(found, Adapter):
        raise InputError(
            f"adapter._target_: {target!r} is not an adapter; derive it from "
            "fedsvd.adapters.Initialiser and write factors(self, site)"
        )
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise InputError(f"adapter._target_: {target!r} lacks the method {', '.join(missing)}")
    return found


def class_of(settings: AdapterSettings) -> type[Adapter]:
    """Return the class that the settings name, by `_target_` or by name."""
    return find_adapter(settings.target or ADAPTERS[settings.resolved])


def build_adapter(settings: AdapterSettings) -> Adapter:
    """Return the configured adapter; InputError for an option that it does not take."""
    found = class_of(settings)
    parameters = inspect.signature(found).parameters
    options = dict(settings.options)
    if "init" in parameters:
        options.setdefault("init", settings.init)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in options:
        if name not in parameters and not takes_any:
            raise one_of(f"adapter.{name}", name, (*parameters, *KEYS))
    try:
        return found(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"adapter: {found.__name__} refused {options}: {error}") from error


KEYS = ("rank", "alpha", "targets", "ranks", "dropout", "calibration")
