"""What `resume=` means for the command line and the configuration."""

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsvd.errors import InputError, StorageError
from fedsvd.overrides import override, unquoted

AUTO = "auto"
FILES = ("config.yaml", "metrics.jsonl", "summary.json")


def with_run_folder(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with the run folder of `resume=RUN_DIR` as Hydra's.

    Raises InputError if it is no run folder, before anything is created.
    """
    given = [unquoted(a.split("=", 1)[1]) for a in arguments if a.startswith("resume=")]
    if not given or given[-1] in (AUTO, "null", ""):
        return list(arguments)
    folder = Path(given[-1])
    if "-m" in arguments or "--multirun" in arguments:
        raise InputError(f"resume: {given[-1]!r} is one run; with -m use resume=auto")
    if any(a.startswith("hydra.run.dir=") for a in arguments):
        raise InputError(
            "hydra.run.dir: resume=RUN_DIR says where the run is; leave one of them out"
        )
    if not (folder / "config.yaml").is_file():
        raise InputError(f"resume: {given[-1]!r} is no run folder: it holds no config.yaml")
    return [*arguments, override("hydra.run.dir", folder)]


def continued(
    folder: Path, composed: Mapping[str, Any], overrides: Sequence[str]
) -> dict[str, Any]:
    """Return the run's own configuration with what the command line asks for put over it.

    An override's key, or all keys of the group that it chooses, are taken from `composed`; with an
    experiment everything is.
    """
    from omegaconf import OmegaConf
    from omegaconf.errors import OmegaConfBaseException
    from yaml import YAMLError

    path = folder / "config.yaml"
    try:
        found = OmegaConf.to_container(OmegaConf.load(path), resolve=False)
    except (OSError, ValueError, YAMLError, OmegaConfBaseException, RecursionError) as error:
        reason = " ".join(str(error).split())[:200]
        raise InputError(f"{path}: cannot be read: {reason}") from error
    if not isinstance(found, dict):
        raise InputError(f"{path}: holds no configuration")
    config: dict[str, Any] = {str(k): v for k, v in found.items() if k != "resume"}
    for given in overrides:
        key = re.split(r"[=@]", given.lstrip("+~"), maxsplit=1)[0]
        if key == "experiment":
            return dict(composed)
        if key != "resume":
            _take(config, composed, re.split(r"[./]", key))
    return config


def _take(config: dict[str, Any], composed: Mapping[str, Any], parts: Sequence[str]) -> None:
    """Set what stands at a dotted key of `config` to what stands there in `composed`."""
    *above, last = parts
    source: Any = composed
    for part in above:
        source = source.get(part, {}) if isinstance(source, Mapping) else {}
        inner = config.setdefault(part, {})
        if not isinstance(inner, dict):
            inner = config[part] = {}
        config = inner
    if isinstance(source, Mapping) and last in source:
        config[last] = source[last]
    else:
        config.pop(last, None)


def check_folder(folder: Path, resume: str | None) -> None:
    """Raise InputError if the folder holds a run that is not to be continued, or cannot be used."""
    try:
        taken = [n for n in FILES if (folder / n).exists()]
    except OSError as error:
        raise StorageError(f"{folder}: cannot be read: {error.strerror}") from error
    if folder.exists() and not folder.is_dir():
        raise InputError(f"{folder}: is a file, and a run needs a folder; choose another one")
    if taken and resume is None:
        raise InputError(
            f"{folder}: holds another run ({taken[0]}); choose another hydra.run.dir, or continue it "
            "with resume=auto"
        )
