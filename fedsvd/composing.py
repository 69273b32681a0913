"""Hydra's part: where the configurations are, composing one, and what its complaints mean."""

import dataclasses
import re
from pathlib import Path
from typing import Any

from omegaconf import DictConfig

from fedsvd.errors import InputError, nearest
from fedsvd.settings import Settings


def config_folder() -> Path:
    """Return the folder of the configurations: in the installed package, or in the source tree."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def compose(overrides: list[str]) -> DictConfig:
    """Return the configuration that `python -m fedsvd.run` would compose from the overrides."""
    from hydra import compose as hydra_compose
    from hydra import initialize_config_dir
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    try:
        with initialize_config_dir(str(config_folder()), version_base="1.3"):
            return hydra_compose("config", overrides)
    except (HydraException, OmegaConfBaseException) as error:
        raise InputError(explain(error)) from error


def explain(error: Exception) -> str:
    """Return Hydra's complaint as one line, with the nearest valid name if there is one."""
    causes = [error]
    while causes[-1].__cause__ is not None:
        causes.append(causes[-1].__cause__)  # type: ignore[arg-type]
    text = " ".join(" ".join(str(e).split()) for e in causes)
    unknown_key = re.search(r"Key '([^']+)' is not in struct\s+full_key: (\S+)", text)
    if unknown_key:
        key, full = unknown_key.groups()
        near = nearest(key, _known_keys(full))
        meant = f" (did you mean {full.removesuffix(key)}{near}?)" if near else ""
        return f"{full}: there is no such key{meant}"
    option = re.search(r"Could not find '([^']+)' Available options in '([^']+)': (.*)", text)
    if option:
        found, group, names = option.groups()
        choices = names.split()
        near = nearest(found.split("/")[-1], choices)
        meant = f" (did you mean {near!r}?)" if near else ""
        found = found.split("/")[-1]
        return f"{group}: {found!r} is not allowed{meant}; choose from {', '.join(choices)}"
    group_name = re.search(r"Could not override '([^']+)'", text)
    if group_name:
        name = group_name.group(1).split("@")[0]
        near = nearest(name.split(".")[0], _known_keys(""))
        meant = f" (did you mean {near}?)" if near else ""
        return f"{name}: there is no such key or group{meant}"
    return " ".join(str(error).split())


def _known_keys(full_key: str) -> list[str]:
    """Return the keys that stand beside `full_key` in the settings."""
    kind: Any = Settings
    for part in full_key.split(".")[:-1]:
        fields = {f.name: f.type for f in dataclasses.fields(kind)}
        kind = fields.get(part)
        if not dataclasses.is_dataclass(kind):
            return []
    return [f.name for f in dataclasses.fields(kind)]
