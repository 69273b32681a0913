"""The command: Hydra in, results out.

    python -m fedsvd.run +experiment=dp_eps1
    python -m fedsvd.run -m +experiment=dp_eps1 privacy.epsilon=1,3,6 hydra/launcher=ray
    python -m fedsvd.run --list
    python -m fedsvd.run +experiment=dp_eps1 strategy._target_=my_lab.MyStrategy
    python -m fedsvd.run resume=outputs/2026-01-01/12-00-00

Exit status: 0 done, 2 the input is wrong, 1 a failure of ours, 130 / 143 interrupted.
"""

import logging
import os
import re
import shlex
import sys
import warnings
from pathlib import Path
from typing import TYPE_CHECKING, Any

from fedsvd import interrupt
from fedsvd.errors import InputError, RunError, TrialsFailed, nearest
from fedsvd.resuming import AUTO, check_folder, continued, with_run_folder

if TYPE_CHECKING:
    from fedsvd.engines.base import Engine


def config_folder() -> Path:
    """Return the folder of the configurations: in the installed package, or in the source tree."""
    package = Path(__file__).resolve().parent
    inside = package / "configs"
    return inside if inside.is_dir() else package.parent / "configs"


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status; whatever is wrong is told in one line."""
    # Hydra would print its own shortened traceback and exit with 1; errors are told here instead.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    debug = os.environ.get("FEDSVD_DEBUG") == "1"
    try:
        with interrupt.listening():
            return _main(sys.argv[1:] if arguments is None else arguments, debug)
    except (InputError, RunError) as error:
        print(f"error: {error}", file=sys.stderr)
        if debug:
            raise
        return 2 if isinstance(error, InputError) else 1
    except interrupt.Interrupted as stop:
        print(stop, file=sys.stderr)
        return stop.status
    except Exception as error:
        if debug:
            raise
        text = " ".join(str(error).split())[:300]
        told = f"{type(error).__name__}: {text} (FEDSVD_DEBUG=1 shows where)"
        print(f"error: a failure of this software: {told}", file=sys.stderr)
        return 1


def _main(arguments: list[str], debug: bool) -> int:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if "--list" in arguments:
        from fedsvd.listing import listing

        _quiet()
        print(listing(config_folder()))
        return 0
    sys.argv = [sys.argv[0], *with_run_folder(arguments)]
    sys.path.insert(0, os.getcwd())  # so that strategy._target_=my_lab.MyStrategy finds my_lab.py
    refused: list[InputError | RunError] = []

    def job(config: Any) -> float | None:
        try:
            return _job(config)
        except (InputError, RunError) as error:  # past Hydra, which would tell it in its own words
            refused.append(error)
            return None

    try:
        hydra.main(str(config_folder()), "config", version_base="1.3")(job)()
    except (HydraException, OmegaConfBaseException) as error:
        if debug:
            raise
        raise InputError(explain(error)) from error
    except InputError as error:  # of the launcher, about the sweep
        refused.append(error)
    except TrialsFailed as error:
        print(f"error: {error}", file=sys.stderr)
        return error.status
    for refusal in refused[:-1]:
        print(f"error: {refusal}", file=sys.stderr)
    if refused:
        raise refused[-1]
    return 0


def _job(config: Any) -> float:
    """Run one composed configuration; its validation accuracy is what a sweeper optimises."""
    from hydra.core.hydra_config import HydraConfig

    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    return execute(config, Path(hydra_config.runtime.output_dir), overrides)["accuracy"]


def execute(
    config: Any, folder: Path, overrides: list[str], grid: "Engine | None" = None
) -> dict[str, Any]:
    """Check a composed configuration, run it, leave everything in `folder`; return the summary.

    Clients run on `grid`, by default that of the configured engine. Raises InputError before any
    work if something cannot be used, and then leaves no empty folder behind.
    """
    from omegaconf import OmegaConf

    from fedsvd.config import from_config

    composed: dict[str, Any] = OmegaConf.to_container(config, resolve=True)  # type: ignore[assignment]
    resume = composed.pop("resume", None)
    try:
        if resume not in (None, AUTO):
            composed = continued(folder, composed, overrides)
        settings = from_config(composed)
        check_folder(folder, resume)
        _quiet()
        from fedsvd.experiment import prepare, train
        from fedsvd.results.recorder import make_recorder
        from fedsvd.results.resume import begin, finished, open_run
        from fedsvd.results.screen import Screen
        from fedsvd.strategies.build import build_strategy
        from fedsvd.strategies.pairs import check_pair
        from fedsvd.strategies.use import check_use

        settings, until, saved = open_run(folder, settings, resume is not None)
        done = finished(folder, until) if saved else None
        if done is not None:
            print(f"{folder}: is finished, after {done['rounds_completed']} rounds")
            return done
        given = [m[1] for o in overrides if (m := re.match(r"\+*strategy\.(\w+)=", o))]
        strategy = build_strategy(settings.strategy, given)
        check_use(settings, strategy)
        check_pair(settings, strategy, config_folder())
        run = prepare(settings, strategy, grid)
        run.rounds = until
        resumed = begin(run, folder)
        screen = Screen(folder)
        text = OmegaConf.to_yaml(OmegaConf.create(composed))
        recorder = make_recorder(settings.recorder.name, folder, text, screen, resumed)
    except InputError:
        if folder.is_dir() and not any(folder.iterdir()):
            folder.rmdir()
        raise
    try:
        return train(run, recorder)
    except (interrupt.Interrupted, RunError) as stop:
        if (folder / "checkpoints" / "last.safetensors").exists():
            stop.args = (
                f"{stop}; to go on: python -m fedsvd.run resume={shlex.quote(str(folder))}",
            )
        raise
    finally:
        screen.close()
        run.journal.close()
        run.grid.close()


def _quiet() -> None:
    """Keep libraries' advice off the screen; warnings of ours stay."""
    import flwr.common.logger  # noqa: F401 -- sets its own level when it is imported

    logging.getLogger("flwr").setLevel(logging.ERROR)
    for name in ("transformers", "datasets", "opacus", "peft"):
        logging.getLogger(name).setLevel(logging.ERROR)
        warnings.filterwarnings("ignore", module=rf"{name}\..*")


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
    import dataclasses

    from fedsvd.settings import Settings

    kind: Any = Settings
    for part in full_key.split(".")[:-1]:
        fields = {f.name: f.type for f in dataclasses.fields(kind)}
        kind = fields.get(part)
        if not dataclasses.is_dataclass(kind):
            return []
    return [f.name for f in dataclasses.fields(kind)]


if __name__ == "__main__":
    sys.exit(main())
