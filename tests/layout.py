"""The order of the house, and fedsvd's imports as a graph."""

import ast
from collections.abc import Iterator, Mapping
from pathlib import Path

# From top to bottom: a room may import what is in it and what stands below it, nothing above.
ORDER = (
    "fedsvd.__main__", "fedsvd", "fedsvd.run", "fedsvd.flower_app", "fedsvd.sweep", "fedsvd.calling",
    "fedsvd.command", "fedsvd.listing", "fedsvd.helping", "fedsvd.allowed",
    "fedsvd.footprint",
    "fedsvd.audit", "fedsvd.tasks",
    "fedsvd.execute", "fedsvd.experiment",
    "fedsvd.results", "fedsvd.testing", "fedsvd.recorders", "fedsvd.checkpoints", "fedsvd.exports",
    "fedsvd.rounds", "fedsvd.strategies", "fedsvd.node",
    "fedsvd.client", "fedsvd.objectives", "fedsvd.models", "fedsvd.privacy", "fedsvd.adapters",
    "fedsvd.engines", "fedsvd.data", "fedsvd.factors", "fedsvd.composing", "fedsvd.complaints",
    "fedsvd.config", "fedsvd.settings", "fedsvd.lowrank",
    "fedsvd.records", "fedsvd.randomness", "fedsvd.pages", "fedsvd.threads", "fedsvd.surroundings",
    "fedsvd.live", "fedsvd.machine",
    "fedsvd.files", "fedsvd.callables", "fedsvd.overrides",
    "fedsvd.kinds", "fedsvd.plugins", "fedsvd.interrupt", "fedsvd.waiting", "fedsvd.logs",
    "fedsvd.terminal", "fedsvd.errors", "fedsvd.version",
)  # fmt: skip

Graph = Mapping[str, set[str]]


def modules(root: Path) -> dict[str, Path]:
    """Return every module of the package `fedsvd` in `root`, by name."""
    found = {}
    for path in sorted((root / "fedsvd").rglob("*.py")):
        parts = path.relative_to(root).with_suffix("").parts
        found[".".join(parts[:-1] if parts[-1] == "__init__" else parts)] = path
    return found


def imports(root: Path) -> Graph:
    """Return which modules each one imports, for types and inside functions too.

    A package is imported by whoever imports a name from its __init__, not by whoever imports a module
    in it. A module's name in a text passed to `import_module` counts.
    """
    known = modules(root)
    return {name: set(_imported(name, path, known)) - {name} for name, path in known.items()}


def _imported(name: str, path: Path, known: Mapping[str, Path]) -> Iterator[str]:
    package = name if path.name == "__init__.py" else name.rpartition(".")[0]
    for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names if alias.name in known)
        elif isinstance(node, ast.ImportFrom):
            above = package.split(".")[: len(package.split(".")) - node.level + 1]
            base = ".".join([*(above if node.level else []), *filter(None, [node.module])])
            for alias in node.names:
                full = f"{base}.{alias.name}"
                yield from (n for n in (full if full in known else base,) if n in known)
        elif isinstance(node, ast.Call) and _called(node.func) in ("import_module", "__import__"):
            texts = (a.value for a in node.args if isinstance(a, ast.Constant))
            yield from (t for t in texts if t in known)


def _called(function: ast.expr) -> str:
    return getattr(function, "attr", getattr(function, "id", ""))


def room(name: str) -> str:
    """Return the entry of ORDER that a module belongs to; KeyError if there is none."""
    if name in ORDER:
        return name
    above = name.rpartition(".")[0]
    if above in ("", "fedsvd"):
        raise KeyError(f"{name} has no place in tests/layout.py")
    return room(above)


def upward(graph: Graph) -> list[str]:
    """Return the imports that point up."""
    place = {name: i for i, name in enumerate(ORDER)}
    return [
        f"{name} imports {other}"
        for name, others in graph.items()
        for other in sorted(others)
        if place[room(other)] < place[room(name)]
    ]


def circles(graph: Graph) -> list[list[str]]:
    """Return the groups of modules that import each other, directly or through others (Tarjan)."""
    number: dict[str, int] = {}
    lowest: dict[str, int] = {}
    stack: list[str] = []
    found: list[list[str]] = []

    def visit(name: str) -> None:
        number[name] = lowest[name] = len(number)
        stack.append(name)
        for other in graph.get(name, ()):
            if other not in number:
                visit(other)
                lowest[name] = min(lowest[name], lowest[other])
            elif other in stack:
                lowest[name] = min(lowest[name], number[other])
        if lowest[name] == number[name]:
            group = stack[stack.index(name) :]
            del stack[stack.index(name) :]
            if len(group) > 1:
                found.append(sorted(group))

    for name in graph:
        if name not in number:
            visit(name)
    return found
