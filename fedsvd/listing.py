"""What there is to choose from: `python -m fedsvd.run --list`."""

import hashlib
import json
from pathlib import Path
from string import ascii_lowercase
from typing import Any

from omegaconf import OmegaConf

from fedsvd.settings.flower import PACKAGE, STOCK
from fedsvd.settings.model import ADAPTERS

RECORDED = Path(__file__).with_name("pairs.json")

GROUPS = {"strategy": "Strategies", "adapter": "Adapters", "data": "Tasks", "model": "Models"}


def listing(folder: Path) -> str:
    """Return strategies, adapters, tasks and models, Flower's strategies, and the valid pairs.

    `folder` is that of the configurations.
    """
    lines: list[str] = []
    for group, title in GROUPS.items():
        lines.append(f"{title} ({group}=NAME)")
        for path in sorted((folder / group).glob("*.yaml")):
            lines.append(f"  {path.stem:18}{_first_comment(path)}")
        lines.append("")
    return "\n".join([*lines, *flowers(), "", *pairs(folder)])


def flowers() -> list[str]:
    """Return Flower's strategies, those that can be used and why the others cannot."""
    lines = [f"Flower's strategies (strategy._target_={PACKAGE}.NAME)"]
    able = {name: stock for name, stock in STOCK.items() if not stock.refused}
    lines += [f"  {name:18}{stock.does}" for name, stock in able.items()]
    lines.append("Flower's that are refused")
    why: dict[str, list[str]] = {}
    for name, stock in STOCK.items():
        if stock.refused:
            why.setdefault(stock.refused, []).append(name)
    return lines + [f"  {', '.join(names)}: {reason}" for reason, names in why.items()]


def pairs(folder: Path) -> list[str]:
    """Return the table of valid pairs: strategies down, adapters across by letters, x for valid."""
    names = sorted(p.stem for p in (folder / "adapter").glob("*.yaml") if p.stem in ADAPTERS)
    letters = dict(zip(ascii_lowercase, names, strict=False))
    lines = ["Valid pairs (x); adapter=none goes with every strategy"]
    lines += [f"  {letter}  {name}" for letter, name in letters.items()]
    lines.append(f"  {'':18}{' '.join(letters)}")
    for strategy, able in valid(folder).items():
        cells = ["x" if name in able else "." for name in names]
        lines.append(f"  {strategy:18}{' '.join(cells)}")
    lines.append(f"  {'Flower':18}{' '.join('x' for _ in names)}")
    return lines


def valid(folder: Path) -> dict[str, list[str]]:
    """Return the adapters that go with each strategy: as recorded, if it is of these files.

    The classes say what goes together, and to import them takes PyTorch and Flower.
    """
    recorded: dict[str, Any] = json.loads(RECORDED.read_text(encoding="utf-8"))
    if recorded["configurations"] == digest(folder):
        return dict(recorded["pairs"])
    from fedsvd.execute import quiet
    from fedsvd.strategies.pairs import table

    quiet()
    return table(folder)


def record(folder: Path) -> str:
    """Return what `RECORDED` is to hold; `python scripts/pairs.py` writes it."""
    from fedsvd.strategies.pairs import table

    return json.dumps({"configurations": digest(folder), "pairs": table(folder)}, indent=1) + "\n"


def digest(folder: Path) -> str:
    """Return the SHA-256 over the values of all configurations of strategies and adapters."""
    files = [
        p for group in ("strategy", "adapter") for p in sorted((folder / group).glob("*.yaml"))
    ]
    values = {
        p.relative_to(folder).as_posix(): OmegaConf.to_container(OmegaConf.load(p)) for p in files
    }
    return hashlib.sha256(json.dumps(values, sort_keys=True).encode()).hexdigest()


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()
