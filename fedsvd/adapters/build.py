"""From a configuration's adapter group to an adapter, ours or a user's own."""

import inspect

from fedsvd.adapters.base import Adapter
from fedsvd.errors import InputError, one_of, wrong
from fedsvd.plugins import find_plugin
from fedsvd.settings import AdapterSettings, Settings
from fedsvd.settings.model import ADAPTERS


def find_adapter(target: str) -> type[Adapter]:
    """Return the adapter class at an import path, or raise InputError that says what is wrong."""
    advice = "derive it from fedsvd.adapters.Initialiser and write factors(self, site)"
    return find_plugin("adapter._target_", target, Adapter, "an adapter", advice)


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


def check_inputs(settings: Settings) -> None:
    """Raise InputError if, under privacy, an adapter with `needs_inputs` has no public texts.

    What it starts from is a function of the texts that it sees, and no noise is added to that.
    """
    if settings.privacy.unit != "none" and lacks_public(settings):
        raise wrong(
            "data.public", 0,
            f"at least 1 with adapter {settings.adapter.label} under privacy, which looks at so many "
            "texts that no client then holds",
        )  # fmt: skip


def lacks_public(settings: Settings) -> bool:
    """Return whether the adapter looks at texts and none are public: validation's stand for them."""
    if settings.adapter.name == "none" or settings.data.public:
        return False
    return build_adapter(settings.adapter).needs_inputs


KEYS = ("rank", "alpha", "targets", "layers", "ranks", "dropout", "calibration")
