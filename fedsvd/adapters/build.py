"""From a configuration's adapter group to an adapter, ours or a user's own."""

import inspect

from fedsvd.adapters.base import Adapter, Initialiser
from fedsvd.errors import InputError, one_of, wrong
from fedsvd.kinds import fitting
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
    """Return the configured adapter; InputError for an option that it does not take, or no rank."""
    found = class_of(settings)
    parameters = inspect.signature(found).parameters
    options = dict(settings.options)
    if "init" in parameters:
        options.setdefault("init", settings.init)
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in options:
        if name not in parameters and not takes_any:
            raise one_of(f"adapter.{name}", name, (*parameters, *KEYS))
    options = fitting("adapter", found, options)
    try:
        adapter = found(**options)
    except (TypeError, ValueError) as error:
        raise InputError(f"adapter: {found.__name__} refused {options}: {error}") from error
    if settings.rank is None and not adapter.chooses_rank:
        raise wrong("adapter.rank", None, f"a whole number of at least 1 with {settings.label}")
    return adapter


def check_inputs(settings: Settings) -> None:
    """Raise InputError if an adapter that looks at texts has none that it may look at.

    Under privacy they must be public: what it starts from is a function of the texts that it sees,
    and no noise is added to that. With `partition=own` no two processes have the same rows.
    """
    if settings.adapter.name == "none":
        return
    label = settings.adapter.label
    own, private = settings.partition.name == "own", settings.privacy.unit != "none"
    looks = looks_at_texts(settings)  # refuses an adapter that cannot be built
    if own and looks:
        raise InputError(
            f"adapter: {label} starts from public texts, and with partition=own no client has the "
            "server's; adapters that look at none can be used"
        )
    stand = stand_ins(settings)
    if private and "validation" in stand:
        raise wrong(
            "data.public", 0,
            f"at least 1 with adapter {label} under privacy, which looks at so many texts that no "
            "client then holds",
        )  # fmt: skip
    if private and "training" in stand:
        raise wrong(
            "data.public", 0,
            f"at least 1, or data.label_texts given, with adapter {label} under privacy, which looks "
            "at the gradient of texts with labels that no client holds",
        )  # fmt: skip


def check_stored(settings: Settings) -> None:
    """Raise InputError for an adapter that changes frozen weights, or asks for their gradients.

    Weights that are held in fewer bytes than float32 can do neither.
    """
    if settings.adapter.name == "none" or not settings.model.stored:
        return
    adapter = build_adapter(settings.adapter)
    if isinstance(adapter, Initialiser) and not adapter.absorbs and not adapter.needs_gradients:
        return
    raise wrong(
        "adapter", settings.adapter.label,
        f"one that leaves frozen weights as they are, as lora, with {settings.model.stored}",
    )  # fmt: skip


def looks_at_texts(settings: Settings) -> bool:
    """Return whether the adapter's start follows from texts."""
    if settings.adapter.name == "none":
        return False
    adapter = build_adapter(settings.adapter)
    return adapter.needs_inputs or adapter.needs_gradients


def stand_ins(settings: Settings) -> tuple[str, ...]:
    """Return which parts stand for public texts that an adapter looks at; none if there are some.

    "validation" for what layers see of texts. "training", with labels, for gradients, for which the
    texts of the labels serve too: validation labels are for nothing but validation.
    """
    if settings.adapter.name == "none" or settings.data.public:
        return ()
    adapter = build_adapter(settings.adapter)
    labelled = adapter.needs_gradients and settings.data.label_texts is None
    return (*["validation"] * adapter.needs_inputs, *["training"] * labelled)


KEYS = ("rank", "alpha", "targets", "layers", "ranks", "dropout", "calibration", "rslora")
