"""Classes named by import path: those of this package and those that users bring."""

import importlib
import inspect
from types import ModuleType
from typing import Any

from fedsvd.errors import InputError, nearest


def find_plugin(key: str, target: str, base: type, what: str, advice: str) -> type[Any]:
    """Return the concrete class derived from `base` at an import path.

    Raises InputError that names the setting `key` and says what is wrong: `what` the class should be
    ("a strategy") and `advice` on how to make it one.
    """
    module_name, _, name = target.rpartition(".")
    module = module_of(key, target)
    found = getattr(module, name, None)
    if found is None:
        classes = [n for n, v in vars(module).items() if inspect.isclass(v)]
        near = nearest(name, classes)
        hint = f"; did you mean {module_name}.{near}?" if near else ""
        raise InputError(f"{key}: module {module_name!r} has no {name!r}{hint}")
    if not inspect.isclass(found) or not issubclass(found, base):
        raise InputError(f"{key}: {target!r} is not {what}; {advice}")
    missing = sorted(getattr(found, "__abstractmethods__", ()))
    if missing:
        raise InputError(f"{key}: {target!r} lacks the method {', '.join(missing)}")
    return found


def module_of(key: str, path: str) -> ModuleType:
    """Return the module of what an import path names; InputError if it cannot be imported."""
    try:
        return importlib.import_module(path.rpartition(".")[0])
    except Exception as error:  # a user's module may fail in any way while it is imported
        reason = f"{type(error).__name__}: {error}".splitlines()[0]
        raise InputError(f"{key}: {path!r} cannot be imported ({reason})") from error
