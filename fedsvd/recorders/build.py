"""From the settings `recorder.*` to the recorders of a run."""

import importlib.util
import inspect
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsvd.errors import InputError, one_of
from fedsvd.kinds import fitting
from fedsvd.plugins import find_plugin
from fedsvd.recorders.mlflow import MlflowRecorder
from fedsvd.recorders.public import Public
from fedsvd.recorders.recorder import FileRecorder, Recorder, Recorders
from fedsvd.recorders.table import CsvRecorder
from fedsvd.recorders.wandb import WandbRecorder
from fedsvd.settings.engine import RecorderSettings

# The package that a recorder writes with, and what installs it.
NEEDS = {
    "tensorboard": ("tensorboard", "tensorboard"),
    "wandb": ("wandb", "wandb"),
    "mlflow": ("mlflow", "mlflow-skinny"),
}
FOLDER = "folder"  # an argument of a recorder of one's own that gets the run folder


def check_recorders(settings: RecorderSettings) -> None:
    """Raise InputError if a recorder cannot be used, before any work."""
    for name in settings.name:
        module, package = NEEDS.get(name, ("", ""))
        if module and importlib.util.find_spec(module) is None:
            raise InputError(
                f"recorder: {name!r} needs the package {package}: pip install 'fedsvd[{name}]'"
            )
    if settings.target is not None:
        _arguments(settings, _find(settings.target), Path())


def make_recorder(
    settings: RecorderSettings,
    folder: Path,
    config: str,
    screen: Recorder,
    resumed: Mapping[str, Any] | None = None,
) -> Recorder:
    """Return the recorders that the settings name, with what shows the run on the screen.

    All but the run folder's own files and the screen get what is public alone. `config` is the
    resolved configuration. `resumed` are the facts of the checkpoint that the run goes on from, None
    for a new one.
    """
    kept = None if resumed is None else int(resumed["metrics"]["bytes"])
    others = [_named(name, folder, kept is not None) for name in settings.name if name != "files"]
    if settings.target is not None:
        found = _find(settings.target)
        others.append(found(**_arguments(settings, found, folder)))
    return Recorders([FileRecorder(folder, config, kept), *(Public(one) for one in others), screen])


def _named(name: str, folder: Path, resumed: bool) -> Recorder:
    if name == "csv":
        return CsvRecorder(folder, resumed)
    if name == "wandb":
        return WandbRecorder(folder, sweep_of(folder), resumed)
    if name == "mlflow":
        return MlflowRecorder(folder, sweep_of(folder), resumed)
    from fedsvd.recorders.tensorboard import TensorBoardRecorder  # TensorBoard is slow to import

    return TensorBoardRecorder(folder)


def sweep_of(folder: Path) -> str | None:
    """Return the name of the sweep that a run folder is a trial of, None if it is none."""
    sweep = folder.resolve().parent
    # Hydra leaves this file in the folder of a sweep, before its first trial.
    return f"{sweep.parent.name}/{sweep.name}" if (sweep / "multirun.yaml").is_file() else None


def _find(target: str) -> type[Recorder]:
    return find_plugin(
        "recorder._target_", target, Recorder, "a recorder",
        "derive it from fedsvd.recorders.Recorder",
    )  # fmt: skip


def _arguments(settings: RecorderSettings, found: type[Recorder], folder: Path) -> dict[str, Any]:
    """Return the arguments of a recorder of one's own; InputError for one that it does not take."""
    parameters = inspect.signature(found).parameters
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    for name in settings.options:
        if name not in parameters and not takes_any:
            raise one_of(f"recorder.{name}", name, list(parameters))
    for name, p in parameters.items():
        named = p.kind in (p.KEYWORD_ONLY, p.POSITIONAL_OR_KEYWORD)
        if named and p.default is p.empty and name not in {*settings.options, FOLDER}:
            raise InputError(
                f"recorder.{name}: is missing; {settings.target} has no default for it"
            )
    more = {FOLDER: folder} if FOLDER in parameters else {}
    return {**fitting("recorder", found, settings.options), **more}
