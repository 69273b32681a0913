"""Hydra's command line, within a process that may use Hydra for something else too."""

import contextlib
import os
import sys
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, NoReturn, final

from fedsvd.composing import config_folder, explain
from fedsvd.errors import InputError, TrialsFailed
from fedsvd.execute import execute
from fedsvd.objectives.metric import metric_of

LINE = "Error executing job with overrides"  # of Hydra, before the error of a job


def job(config: Any) -> float:
    """Run one composed configuration; its figure of validation is what a sweeper optimises."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    hydra_config = HydraConfig.get()
    overrides = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    summary = execute(config, Path(hydra_config.runtime.output_dir), overrides)
    return float(summary[metric_of(summary).name])


def run_hydra(arguments: Sequence[str], job: Callable[[Any], float]) -> None:
    """Compose what the arguments say and run `job` on it, once or for every trial of a sweep.

    What is wrong with the arguments, or with the run folder, is an InputError; what the job raises
    passes through, and callbacks see that job as failed.
    """
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    ordered = in_order(arguments)
    raised: list[Exception] = []
    stderr = sys.stderr

    def told(config: Any) -> float:
        try:
            return job(config)
        except Exception as error:
            raised.append(error)
            sys.stderr = _Without(LINE, stderr)
            raise

    with _own_state([sys.argv[0], *ordered]), _own_launcher():
        try:
            hydra.main(str(config_folder()), "config", version_base="1.3")(told)()
        except Exception as error:
            if any(error is r for r in raised) or isinstance(error, (InputError, TrialsFailed)):
                raise
            if isinstance(error, (HydraException, OmegaConfBaseException, ValueError)):
                raise InputError(explain(error)) from error
            if isinstance(error, OSError) and error.filename is not None:
                raise InputError(_no_folder(error, arguments)) from error
            raise
        finally:
            if isinstance(sys.stderr, _Without):
                sys.stderr = stderr


def in_order(arguments: Sequence[str]) -> list[str]:
    """Return the arguments with Hydra's options before the overrides; InputError for unknown ones.

    Hydra's own parser stumbles over overrides on both sides of -m.
    """
    from hydra._internal.utils import get_args_parser

    parser = get_args_parser()
    parser.error = _refuse  # type: ignore[method-assign]
    given = parser.parse_intermixed_args(list(arguments))
    modes = {"run": "--run", "cfg": "--cfg", "multirun": "--multirun", "info": "--info",
             "shell_completion": "--shell-completion"}  # fmt: skip
    chosen = [flag for name, flag in modes.items() if getattr(given, name) not in (None, False)]
    if len(chosen) > 1:
        raise InputError(f"{' and '.join(chosen)}: only one of them can be done at once")
    left = list(given.overrides)
    options = []
    for argument in arguments:
        if argument in left:
            left.remove(argument)
        else:
            options.append(argument)
    return [*options, *given.overrides]


def _refuse(message: str) -> NoReturn:
    raise InputError(f"{message}; --help shows what there is")


def _no_folder(error: OSError, arguments: Sequence[str]) -> str:
    """Return why Hydra could not make the folder of the run or the sweep."""
    sweep = any(a in ("-m", "--multirun") for a in arguments)
    key = "hydra.sweep.dir" if sweep else "hydra.run.dir"
    if isinstance(error, (FileExistsError, NotADirectoryError)):
        why = "a file stands there or on the way to it"
    else:
        why = error.strerror or type(error).__name__
    return f"{key}: the folder {error.filename!r} cannot be made: {why}"


@final
class _Without:
    """A stream without the writes that begin with some text; all else is the stream's own."""

    def __init__(self, begin: str, stream: Any) -> None:
        self._begin, self._stream = begin, stream

    def write(self, text: str) -> int:
        if text.startswith(self._begin):
            return len(text)
        return int(self._stream.write(text) or 0)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._stream, name)


@contextlib.contextmanager
def _own_state(argv: list[str]) -> Iterator[None]:
    """Give Hydra a state of its own, as in a new process, and put the other back at the end."""
    from hydra.core.global_hydra import GlobalHydra
    from hydra.core.hydra_config import HydraConfig
    from hydra.core.singleton import Singleton
    from hydra.core.utils import JobRuntime
    from hydra.version import VersionBase

    kinds: tuple[type, ...] = (GlobalHydra, HydraConfig, JobRuntime, VersionBase)
    instances: dict[type, Any] = Singleton._instances
    before: dict[type, Any] = {k: instances.pop(k) for k in kinds if k in instances}
    given, sys.argv = sys.argv, argv
    if os.getcwd() not in sys.path:
        sys.path.insert(0, os.getcwd())  # so that strategy._target_=my_lab.MyStrategy is found
    try:
        yield
    finally:
        sys.argv = given
        for kind in kinds:
            instances.pop(kind, None)
        instances.update(before)


@contextlib.contextmanager
def _own_launcher() -> Iterator[None]:
    """Have hydra/launcher=basic name the fedsvd launcher that goes on after a failed trial."""
    from hydra.core.config_store import ConfigStore
    from hydra.core.plugins import Plugins

    Plugins.instance()  # registers Hydra's own
    store = ConfigStore.instance()
    place = {"group": "hydra/launcher", "name": "basic"}
    before = store.load("hydra/launcher/basic.yaml")
    target = "hydra_plugins.fedsvd_launcher.LocalLauncher"
    store.store(**place, node={"_target_": target}, provider="fedsvd")
    try:
        yield
    finally:
        store.store(**place, node=before.node, provider=before.provider)
