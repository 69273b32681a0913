"""What a server proposes: its overrides, composed with nothing resolved, and what they changed."""

import functools
import re
import shlex
from collections.abc import Mapping, Sequence
from typing import Any

from fedsvd.composing import compose
from fedsvd.errors import InputError, wrong

# What a node composes by itself; everything that a server's overrides make different from it must
# be in OPEN or OWN_BUSINESS.
BASELINE = ["partition=own", "privacy=dp_sgd"]

# What a server may choose, each within the policy (fedsvd/node/rules.py). A key that is not here is
# closed, as is one that a later version adds.
OPEN: Mapping[str, frozenset[str]] = {
    "": frozenset({"seed", "rounds"}),
    "clients": frozenset(
        {"number", "per_round", "participation", "max_rounds", "features", "ranks", "weighting"}
    ),
    "training": frozenset(
        {
            "optimizer", "lr", "schedule", "momentum", "weight_decay", "local_steps", "batch_size",
            "clip_norm", "precision", "microbatch_tokens", "factors", "cache",
            "gradient_checkpointing",
        }
    ),
    "model": frozenset(
        {
            "name", "package", "folder", "revision", "pooling", "normalize", "head", "head_form",
            "head_init", "head_bias", "scale", "temperature", "head_cosine", "head_dim",
            "max_length", "dropout", "dtype", "attention", "quantization",
        }
    ),
    "adapter": frozenset(
        {
            "_target_", "name", "rank", "alpha", "init", "targets", "layers", "ranks",
            "dropout", "calibration", "rslora",
        }
    ),
    "strategy": frozenset({"_target_"}),
    "privacy": frozenset(
        {
            "unit", "epsilon", "noise_multiplier", "delta", "clip_norm", "clipping", "accountant",
            "public_counts", "threat_model", "secure_noise", "diagnostics", "clip_quantile",
            "clip_rate", "clip_noise", "gradients",
        }
    ),
    "data": frozenset({"labels", "label_texts", "public_size"}),
}  # fmt: skip
# What concerns the server alone; a node does not look at it and uses its own.
OWN_BUSINESS = frozenset({"averaging", "device", "engine", "recorder", "faults", "start"})
# Groups whose further keys are options of the class that `_target_` names.
WITH_OPTIONS = frozenset({"adapter", "strategy"})

MOST_OVERRIDES, MOST_CHARACTERS = 500, 20_000
CHOICE = re.compile(r"[A-Za-z0-9_]+(/[A-Za-z0-9_]+)*")


# Keys of a run's configuration that are settings of their own, by what they override. The first are
# names of options, the others numbers.
GROUPS = {"experiment": "+experiment"} | {
    name: name for name in ("data", "model", "partition", "strategy", "adapter", "privacy")
}
NUMBERS = {
    "rounds": "rounds", "seed": "seed", "clients": "clients.number",
    "clients-per-round": "clients.per_round", "local-steps": "training.local_steps",
    "batch-size": "training.batch_size", "lr": "training.lr", "rank": "adapter.rank",
    "epsilon": "privacy.epsilon", "delta": "privacy.delta",
}  # fmt: skip


def overrides_in(run_config: Mapping[str, Any], key: str = "overrides") -> list[str]:
    """Return the overrides that a run's configuration holds; ValueError for an open quote.

    Before those of "overrides" come the settings that have keys of their own; where a setting stands
    in both, its own key counts. InputError for such a key of the wrong type.
    """
    given = shlex.split(str(run_config.get(key, "")))
    if key != "overrides":
        return given
    named = _named(run_config)
    return named + [o for o in given if setting(o) not in {*map(setting, named)}]


def setting(override: str) -> str:
    """Return what an override sets, without its sign."""
    return override.lstrip("+~").partition("=")[0]


def for_nodes(overrides: Sequence[str], nodes: int) -> list[str]:
    """Return overrides that make a client of every node of a simulation, unless they say how many.

    Of fewer clients than would take part in a round all take part.
    """
    if "clients.number" in map(setting, overrides):
        return list(overrides)
    more = [f"clients.number={nodes}"]
    if compose(list(overrides)).clients.per_round > nodes:
        more.append(f"clients.per_round={nodes}")
    return [*overrides, *more]


def _named(run_config: Mapping[str, Any]) -> list[str]:
    """Return the overrides of the settings that have keys of their own; "" is none."""
    found = []
    for name, override in (GROUPS | NUMBERS).items():
        value = run_config.get(name, "")
        if value == "":
            continue
        if name in GROUPS and not (isinstance(value, str) and CHOICE.fullmatch(value)):
            raise wrong(name, value, "the name of an installed option")
        if name in NUMBERS and (isinstance(value, bool) or not isinstance(value, (int, float))):
            raise wrong(name, value, "a number, or an empty text for the experiment's")
        found.append(f"{override}={value}")
    return found


def proposal(overrides: Sequence[str]) -> dict[str, Any]:
    """Return the configuration composed from a server's overrides, as plain values.

    The configurations are those installed here. No interpolation is ever resolved. Raises InputError
    that names the first key that is not the server's to choose, by whatever way it was set: a group,
    an experiment, a dotted key, an addition, a removal.
    """
    check_overrides(overrides)
    found, base = plain(compose(list(overrides))), _baseline()
    for section, key in changed(base, found):
        whole = f"{section}.{key}" if section else key
        if (section or key) in OWN_BUSINESS or key in OPEN.get(section, frozenset()):
            continue
        if section in WITH_OPTIONS:
            continue  # an option, which is looked at with its class
        value = found.get(section, {}).get(key) if section else found.get(key)
        raise wrong(whole, value, "left as it is: a node leaves it to its owner")
    return found


@functools.lru_cache(maxsize=1)
def _baseline() -> dict[str, Any]:
    return plain(compose(list(BASELINE)))


def check_overrides(overrides: Sequence[str]) -> None:
    """Raise InputError unless every override is a plain value or a choice of an installed group."""
    from hydra.core.override_parser.overrides_parser import OverridesParser
    from hydra.errors import HydraException

    if len(overrides) > MOST_OVERRIDES or sum(map(len, overrides)) > MOST_CHARACTERS:
        raise InputError(f"overrides: more than {MOST_OVERRIDES} or {MOST_CHARACTERS} characters")
    for text in overrides:
        if "$" in text:
            raise wrong("overrides", text, "without $: a node resolves nothing for a server")
        if "\\" in text or not text.isprintable():
            raise wrong("overrides", text, "printable, without backslashes")
    try:
        parsed = OverridesParser.create().parse_overrides(list(overrides))
    except HydraException as error:
        raise InputError(f"overrides: cannot be parsed: {' '.join(str(error).split())}") from error
    for one in parsed:
        first = re.split(r"[./@]", one.key_or_group)[0]
        if one.package is not None or first == "hydra":
            raise wrong("overrides", one.input_line, "about the run's own keys: no hydra.*, no @")
        if one.is_sweep_override():
            raise wrong("overrides", one.input_line, "one value a key")
        top = "." not in one.key_or_group and one.key_or_group != "device"
        if top and one.value_type is not None:
            _check_choice(one.key_or_group, one.value())


def _check_choice(key: str, value: Any) -> None:
    """Raise InputError for a text at the top that could be the path of a file."""
    for name in value if isinstance(value, list) else [value]:
        text = getattr(name, "text", name)
        if isinstance(text, str) and not CHOICE.fullmatch(text):
            raise wrong(key, text, "the name of an installed option")


def plain(config: Any) -> dict[str, Any]:
    """Return a composed configuration as dicts, lists and scalars, interpolations as their text."""
    from omegaconf import OmegaConf

    values: dict[str, Any] = OmegaConf.to_container(config, resolve=False)  # type: ignore[assignment]
    return values


def changed(base: Mapping[str, Any], found: Mapping[str, Any]) -> list[tuple[str, str]]:
    """Return (section, key) of what two configurations differ in; section "" for the top."""
    out = []
    for section in sorted(base.keys() | found.keys()):
        one, other = base.get(section), found.get(section)
        if isinstance(one, Mapping) and isinstance(other, Mapping):
            keys = sorted(one.keys() | other.keys(), key=str)
            out += [(section, k) for k in keys if not _same(one, other, k)]
        elif not _same(base, found, section):
            out.append(("", section))
    return out


def _same(one: Mapping[str, Any], other: Mapping[str, Any], key: str) -> bool:
    return key in one and key in other and repr(one[key]) == repr(other[key])
