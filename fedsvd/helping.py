"""`python -m fedsvd.run --help`: every key with its value, its meaning and what it takes.

Meanings are the comments of the configuration; what a key takes is what its check says.
"""

import re
from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from string import Template
from typing import Any

import yaml
from omegaconf import DictConfig, OmegaConf

from fedsvd.allowed import allowed
from fedsvd.composing import compose

KEY = re.compile(r"( *)([A-Za-z_]\w*):(?: |$)")
COLUMN = 34  # where what is said of a key begins


def help_text(folder: Path, overrides: Sequence[str]) -> str:
    """Return the help of the configuration that the overrides choose; `folder` holds all of them.

    Raises InputError if they choose none.
    """
    composed = compose(list(overrides), hydra=True)
    template, choices = str(composed.hydra.help.template), dict(composed.hydra.runtime.choices)
    OmegaConf.set_struct(composed, False)
    del composed["hydra"]
    known = meanings(folder, {str(k): str(v) for k, v in choices.items()})
    takes = allowed(_plain(composed))
    lines = []
    for path, line in keys(OmegaConf.to_yaml(composed)):
        meaning, taken = known.get(path or "", ""), takes.get(path or "")
        told = f"{meaning} [{taken}]" if taken and not _said(taken, meaning) else meaning
        lines.append(f"{line:{COLUMN - 2}}  # {told}" if told else line)
    config, listed = "\n".join(lines) + "\n", groups(folder)
    return Template(template).safe_substitute(CONFIG=config, APP_CONFIG_GROUPS=listed)


def _plain(composed: DictConfig) -> dict[str, Any]:
    values = OmegaConf.to_container(composed, resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def _said(taken: str, meaning: str) -> bool:
    """Whether the meaning names every option, each beside what it does."""
    return all(re.search(rf"(?<!\w){re.escape(one)}(?!\w)", meaning) for one in taken.split(", "))


def groups(folder: Path) -> str:
    """Return a line for each group with its options."""
    found: dict[str, list[str]] = {"hydra/launcher": ["basic"]}  # Hydra's own
    for path in sorted(folder.rglob("*.yaml")):
        if path.parent != folder:
            found.setdefault(path.parent.relative_to(folder).as_posix(), []).append(path.stem)
    return "\n".join(f"{group}: {', '.join(names)}" for group, names in sorted(found.items()))


def meanings(folder: Path, choices: Mapping[str, str]) -> dict[str, str]:
    """Return the comments on keys by path.

    They are those of the chosen files, and for what these leave out of the group's default.
    """
    first = (folder / "config.yaml").read_text(encoding="utf-8")
    usual = [one for one in yaml.safe_load(first)["defaults"] if isinstance(one, Mapping)]
    found = comments(first)
    for default in usual:
        for group, option in default.items():
            for name in dict.fromkeys((choices.get(str(group), str(option)), str(option))):
                path = folder / str(group) / f"{name}.yaml"
                held = comments(path.read_text(encoding="utf-8")) if path.is_file() else {}
                for key, said in held.items():
                    found.setdefault(f"{group}.{key}", said)
    return found


def comments(text: str) -> dict[str, str]:
    """Return what a YAML file says behind its keys, with the lines of comment that go on."""
    found: dict[str, str] = {}
    last = None
    for path, line in keys(text):
        said = line.partition(" # ")[2].strip()
        if path is not None:
            last = path
            if said:
                found[path] = said
        elif line.lstrip().startswith("# ") and last in found:
            found[last] += f" {line.strip()[2:].strip()}"
    return found


def keys(text: str) -> Iterator[tuple[str | None, str]]:
    """Yield (dotted path, line) of the lines of YAML, the path None where no key stands."""
    above: list[tuple[int, str]] = []
    for line in text.splitlines():
        match = KEY.match(line)
        if match is None:
            yield None, line
            continue
        depth = len(match[1])
        above = [*(one for one in above if one[0] < depth), (depth, match[2])]
        yield ".".join(name for _, name in above), line
