"""Modules that can be called: `fedsvd.run` is a command's module and a function at once."""

import inspect
import sys
from collections.abc import Callable
from importlib import import_module
from types import ModuleType
from typing import Any, final


@final
class CallableModule(ModuleType):
    """A module whose call is that of its function of the same name: `fedsvd.run()` is `run.run()`."""

    def __call__(self, *given: Any, **named: Any) -> Any:
        """Call the function."""
        return self._function(*given, **named)

    def __reduce__(self) -> tuple[Callable[[str], ModuleType], tuple[str]]:
        """Let it be pickled by its name, as a plain module is by Ray's pickler."""
        return import_module, (self.__name__,)

    @property
    def __signature__(self) -> inspect.Signature:
        """The function's signature, for `help` and editors."""
        return inspect.signature(self._function)

    @property
    def _function(self) -> Callable[..., Any]:
        found: Callable[..., Any] = vars(self)[self.__name__.rpartition(".")[2]]
        return found


def make_callable(name: str) -> None:
    """Let the module of this name be called; `name` is its `__name__`.

    A package's attribute is the submodule as soon as anybody imports it, so a function beside it
    under the same name would come and go.
    """
    sys.modules[name].__class__ = CallableModule
