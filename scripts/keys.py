"""Write the reference of keys: every key with its default, what it takes and what it means.

python scripts/keys.py           # writes docs/reference/keys.md
python scripts/keys.py --check   # status 1 if it is not up to date

Meanings are the comments of the configurations, and what a key takes is what its check says: both
are those of `--help`, and the second is that of the errors.
"""

import sys
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import yaml
from omegaconf import OmegaConf

from fedsvd.adapters.build import build_adapter
from fedsvd.allowed import allowed
from fedsvd.composing import compose, config_folder
from fedsvd.config import from_config
from fedsvd.execute import quiet
from fedsvd.helping import comments, meanings
from fedsvd.strategies.build import build_strategy

PAGE = Path(__file__).resolve().parent.parent / "docs" / "reference" / "keys.md"
HEAD = """# Every key

Written by `python scripts/keys.py` from the configurations and the checks of the settings.
`python -m fedsvd.run --help` prints the same for the options that you choose. An error about a key
names the same values. `-` under *takes* is a text, a name of a class, or a value that the group
fixes. How keys go together: [configuration.md](../configuration.md).
"""
TITLES = {
    "": "The run", "clients": "Clients", "training": "Training", "data": "Data",
    "partition": "Partition", "model": "Model", "adapter": "Adapter", "strategy": "Strategy",
    "privacy": "Privacy", "engine": "Engine", "recorder": "Recorder", "faults": "Faults",
    "attack": "Attack", "averaging": "Averaging", "start": "Start",
}  # fmt: skip


def page() -> str:
    """Return the page."""
    folder = config_folder()
    base = plain([])
    known = meanings(folder, {})
    takes = allowed(base, check)
    parts = [HEAD]
    for group, values in sections(base).items():
        parts.append(f"\n## {TITLES.get(group, group)}\n")
        parts.append(table(rows(group, values, known, takes)))
        if (folder / group).is_dir() and group:
            parts.append(options(folder / group, set(values)))
    launcher = folder / "hydra" / "launcher" / "ray.yaml"
    values = yaml.safe_load(launcher.read_text(encoding="utf-8"))
    said = {f"hydra.launcher.{k}": v for k, v in comments(launcher.read_text()).items()}
    parts.append("\n## Launcher of sweeps\n\nWith `hydra/launcher=ray`:\n")
    parts.append(table(rows("hydra.launcher", values, said, {})))
    return "\n".join(parts)


def sections(base: Mapping[str, Any]) -> dict[str, dict[str, Any]]:
    """Return the keys by group, those of no group first under ""."""
    alone = {k: v for k, v in base.items() if not (isinstance(v, Mapping) and k in TITLES)}
    return {"": alone} | {k: dict(v) for k, v in base.items() if k not in alone}


def options(folder: Path, common: set[str]) -> str:
    """Return what the options of a group add to the keys of its default."""
    lines = ["\nOptions:\n", "| option | what it is | keys of its own |", "|---|---|---|"]
    own: list[list[str]] = []
    for path in sorted(folder.glob("*.yaml")):
        text = path.read_text(encoding="utf-8")
        values = yaml.safe_load(text)
        added = [k for k in values if k not in common]
        about = text.partition("\n")[0].lstrip("# ").rstrip()
        lines.append(f"| `{path.stem}` | {cell(about)} | {', '.join(f'`{k}`' for k in added)} |")
        if added:
            composed = plain([f"{folder.name}={path.stem}"])
            said = {f"{folder.name}.{k}": v for k, v in comments(text).items()}
            takes = allowed(composed, check, {f"{folder.name}.{k}" for k in added})
            group = {k: composed[folder.name][k] for k in added}
            own += [[f"`{path.stem}`", *row] for row in rows(folder.name, group, said, takes)]
    if own:
        lines += ["\nKeys that one option alone has:\n", table(own, "option")]
    return "\n".join(lines)


def rows(
    group: str, values: Mapping[str, Any], said: Mapping[str, str], takes: Mapping[str, str]
) -> Iterator[list[str]]:
    """Yield key, default, what it takes, and meaning."""
    for key, value in values.items():
        path = f"{group}.{key}" if group else str(key)
        default = OmegaConf.to_yaml(OmegaConf.create([value])).strip()[2:] if value != {} else "{}"
        default = " ".join(default.split()) if not isinstance(value, (list, dict)) else str(value)
        if len(default) > 60:
            default = default[:57] + "..."
        yield [f"`{path}`", f"`{default}`", cell(takes.get(path, "-")), cell(said.get(path, ""))]


def table(lines: Any, *before: str) -> str:
    """Return a table of the rows."""
    names = [*before, "key", "default", "takes", "meaning"]
    head = [f"| {' | '.join(names)} |", "|" + "---|" * len(names)]
    return "\n".join([*head, *(f"| {' | '.join(row)} |" for row in lines)])


def cell(text: str) -> str:
    """Return a text as it stands in a cell of a table."""
    for mark in ("\\", "|", "*", "<", "[", "]"):
        text = text.replace(mark, f"\\{mark}")
    return text.replace("_", "\\_")


def plain(overrides: list[str]) -> dict[str, Any]:
    """Return a composed configuration as plain values."""
    values = OmegaConf.to_container(compose(overrides), resolve=True)
    assert isinstance(values, dict)
    return {str(key): value for key, value in values.items()}


def check(values: Mapping[str, Any]) -> None:
    """Raise InputError where a configuration cannot be used."""
    settings = from_config(values)
    build_strategy(settings.strategy, list(settings.strategy.options))
    build_adapter(settings.adapter)


if __name__ == "__main__":
    quiet()
    text = page()
    if "--check" not in sys.argv[1:]:
        PAGE.parent.mkdir(exist_ok=True)
        PAGE.write_text(text + "\n", encoding="utf-8")
    elif not PAGE.exists() or PAGE.read_text(encoding="utf-8") != text + "\n":
        sys.exit(f"{PAGE.name} is not up to date; run python scripts/keys.py")
