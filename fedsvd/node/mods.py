"""ClientApp mods of Flower: functions around a client's training and evaluation.

In a simulation the run's configuration names them (`mods`). On a node only the policy of its owner
does: a server that could name one would choose code that runs there.
"""

from collections.abc import Callable, Sequence

from flwr.app import Context, Message

from fedsvd.errors import InputError, nearest
from fedsvd.plugins import module_of

App = Callable[[Message, Context], Message]
Mod = Callable[[Message, Context, App], Message]


def find_mod(key: str, path: str) -> Mod:
    """Return the function (message, context, call_next) -> message at an import path.

    Raises InputError that names `key` if it cannot be imported, is not there, or is none: a class,
    such as Flower's LocalDpMod, must be made into an object in a module of one's own.
    """
    module, name = module_of(key, path), path.rpartition(".")[2]
    found = getattr(module, name, None)
    if not callable(found) or isinstance(found, type):
        near = nearest(name, [n for n, v in vars(module).items() if callable(v)])
        meant = f" (did you mean {near!r}?)" if near and near != name else ""
        raise InputError(
            f"{key}: {path!r} is not allowed{meant}; it must be a function (message, context, "
            "call_next), or an object that can be called so"
        )
    mod: Mod = found
    return mod


def with_mods(app: App, mods: Sequence[Mod]) -> App:
    """Return `app` within the mods; the first is outermost, as in Flower's ClientApp."""
    for mod in reversed(mods):
        app = _around(mod, app)
    return app


def _around(mod: Mod, app: App) -> App:
    return lambda message, context: mod(message, context, app)
