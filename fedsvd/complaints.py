"""What Hydra's and OmegaConf's complaints mean, each told in one line."""

import dataclasses
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from omegaconf import OmegaConf

from fedsvd.errors import nearest
from fedsvd.settings import Settings

# Groups whose files may hold options of the class that they name.
WITH_OPTIONS = ("adapter", "partition", "strategy")


def explain(error: Exception, folder: Path) -> str:
    """Return a complaint as one line, with the nearest valid name if there is one.

    `folder` is that of the configurations.
    """
    causes = [error]
    while isinstance(causes[-1].__cause__, Exception):
        causes.append(causes[-1].__cause__)
    text = " ".join(" ".join(str(e).split()) for e in causes)
    for told in (_choice(causes, folder), _sign(text, folder), _key(text, folder), _value(text)):
        if told is not None:
            return told
    return _syntax(" ".join(str(error).split()))


def _choice(causes: list[Exception], folder: Path) -> str | None:
    """A group has no such option: the exception carries the group and its options."""
    for error in causes:
        missing, options = (getattr(error, k, None) for k in ("missing_cfg_file", "options"))
        if not isinstance(missing, str):
            continue
        if options is None or "/" not in missing:
            return f"{missing}: there is no such configuration"
        parts = missing.split("/")
        depth = 2 if parts[0] == "hydra" else 1  # experiment/paper is within experiment
        group, found = "/".join(parts[:depth]), "/".join(parts[depth:])
        own = options if len(parts) == depth + 1 else ()
        names = list(dict.fromkeys([*own, *_options(folder, group)]))
        near = nearest(found, names)
        meant = f" (did you mean {near!r}?)" if near else ""
        return f"{group}: {found!r} is not allowed{meant}; choose from {', '.join(names)}"
    return None


def _sign(text: str, folder: Path) -> str | None:
    """A plus sign or a tilde that is missing, or one too much."""
    found = re.search(r"append to your default list use \+(\S+?)=(\S+)", text)
    if found and "Did you mean to override" not in text:
        names = _options(folder, found[1])
        meant = found[2] if found[2] in names else nearest(found[2], names) or found[2]
        return f"{found[1]}: takes a plus sign, as it adds to the defaults: +{found[1]}={meant}"
    if found := re.search(r"An item is already at '([^']+)'", text):
        return f"{found[1]}: is there already; leave the plus sign out"
    if found := re.search(r"Multiple values for (\S+?)\. To override a value .*: (\S+?)'", text):
        return f"{found[1]}: is chosen already; leave the plus sign out: {found[1]}={found[2]}"
    if found := re.search(r"Could not delete (?:from config\. )?'([^']+)'", text):
        return f"~{found[1]}: there is nothing of that name to take out"
    return None


def _key(text: str, folder: Path) -> str | None:
    """A key that the composed configuration does not hold."""
    found = re.search(r"Could not override '([^']+)'", text)
    if not found:
        return None
    full = found[1].split("@")[0]
    place = re.search(r"full_key: (\S+)", text)
    above, _, last = (place[1] if place else full).rpartition(".")
    beside = _keys(folder, above)
    top, owners = full.partition(".")[0], _owners(folder, full)
    if owners:
        more = f", or +{full}=VALUE if the class takes it" if top in ("adapter", "strategy") else ""
        return f"{full}: the chosen {top} has no such key; use {' or '.join(owners)}{more}"
    if last in beside and "@" not in found[1]:
        return f"{full}: takes a plus sign here: +{full}=VALUE"
    elsewhere = None if above else next((k for k in _every() if k.endswith(f".{last}")), None)
    near = elsewhere or nearest(last, beside) or nearest(last.split("/")[0], beside)
    meant = f" (did you mean {f'{above}.' if above else ''}{near}?)" if near else ""
    if not meant and above in WITH_OPTIONS:
        meant = f"; an option that its class takes needs a plus sign: +{full}=VALUE"
    group = "" if "." in full or meant else " or group"
    return f"{found[1]}: there is no such key{group}{meant}"


def _value(text: str) -> str | None:
    """A value of the wrong type, an interpolation without a source, a list that may be a sweep."""
    if found := re.search(r"Error merging override (\S+?)=.* (Value .*?) full_key", text):
        return f"{found[1]}: {found[2][0].lower()}{found[2][1:]}"
    if found := re.search(r"Ambiguous value for argument '(([^=']+)=(\S+?))'", text):
        return (
            f"{found[2]}: {found[3]!r} may mean three things: {found[2]}=[{found[3]}] is a list, "
            f"{found[2]}='\"{found[3]}\"' a text, and with -m it is a sweep"
        )
    if found := re.search(r"Interpolation key '([^']+)' not found(?: full_key: (\S+))?", text):
        where = f"{found[2]}: " if found[2] else ""
        return f"{where}there is no key {found[1]!r} for ${{{found[1]}}} to stand for"
    if found := re.search(r"resolving interpolation: \W*(.*?)['\"]* full_key: (\S+)", text):
        return f"{found[2]}: {found[1]}"
    return None


def _syntax(text: str) -> str:
    """What is left: how it is written, without the grammar's words for it."""
    text = re.sub(r",? ?expecting \{.*?\}(?= See|$)", "", text)
    return re.sub(r"\s*See https?://\S+ for details", " (key=value, [a, b], {k: v}, 'text')", text)


def _options(folder: Path, group: str) -> list[str]:
    """Return the options of a group, those of groups within it as inner/name."""
    found = ((folder / group).rglob("*.yaml"), folder / group)
    return [p.relative_to(found[1]).with_suffix("").as_posix() for p in sorted(found[0])]


def _keys(folder: Path, above: str) -> list[str]:
    """Return the keys that may stand under a dotted key: of the settings, or of a group's files."""
    if not above:
        return [*(f.name for f in dataclasses.fields(Settings)), "resume"]
    kind: Any = Settings
    for part in above.split("."):
        fields = {f.name: f.type for f in dataclasses.fields(kind)}
        kind = fields.get(part)
        if not dataclasses.is_dataclass(kind):
            return []
    names = {f.name for f in dataclasses.fields(kind)} - {"target", "options"}
    if above in WITH_OPTIONS:
        names |= {key for keys in _files(folder, above).values() for key in keys}
    return sorted(names - {"_target_"})


def _files(folder: Path, group: str) -> Mapping[str, set[str]]:
    """Return the keys of each file of a group, by the file's name."""
    found: dict[str, set[str]] = {}
    for path in sorted((folder / group).glob("*.yaml")):
        values = OmegaConf.load(path)
        found[path.stem] = {str(key) for key in values}
    return found


def _owners(folder: Path, full: str) -> list[str]:
    """Return which choices of its group hold a key, as group=name."""
    group, key = [*full.split("."), ""][:2]
    return [f"{group}={name}" for name, keys in _files(folder, group).items() if key in keys]


def _every() -> Iterator[str]:
    """Yield every key of the settings' groups, dotted."""
    for group in dataclasses.fields(Settings):
        if dataclasses.is_dataclass(group.type):
            for key in dataclasses.fields(group.type):
                yield f"{group.name}.{key.name}"
