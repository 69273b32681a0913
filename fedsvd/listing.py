"""What there is to choose from: `python -m fedsvd.run --list`."""

from pathlib import Path
from string import ascii_lowercase

from fedsvd.adapters.build import build_adapter
from fedsvd.settings import AdapterSettings
from fedsvd.settings.flower import PACKAGE, STOCK
from fedsvd.settings.model import ADAPTERS
from fedsvd.strategies.pairs import configured, refusal

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
    adapters = [build_adapter(AdapterSettings(name)) for name in names]
    letters = dict(zip(ascii_lowercase, names, strict=False))
    lines = ["Valid pairs (x); adapter=none goes with every strategy"]
    lines += [f"  {letter}  {name}" for letter, name in letters.items()]
    lines.append(f"  {'':18}{' '.join(letters)}")
    for name, strategy in configured(folder):
        cells = ["x" if refusal(strategy, adapter) is None else "." for adapter in adapters]
        lines.append(f"  {name:18}{' '.join(cells)}")
    lines.append(f"  {'Flower':18}{' '.join('x' for _ in adapters)}")
    return lines


def _first_comment(path: Path) -> str:
    first = path.read_text(encoding="utf-8").partition("\n")[0]
    return first.removeprefix("#").strip()
