"""The command: Hydra in, results out.

    python -m fedsvd.run +experiment=dp_eps1
    python -m fedsvd.run -m +experiment=dp_eps1 privacy.epsilon=1,3,6 hydra/launcher=ray
    python -m fedsvd.run --list
    python -m fedsvd.run +experiment=dp_eps1 --plan
    python -m fedsvd.run +experiment=dp_eps1 strategy._target_=my_lab.MyStrategy
    python -m fedsvd.run resume=outputs/2026-01-01/12-00-00

Exit status: 0 done, 2 the input is wrong, 1 a failure of this software, 130 / 143 interrupted.

From Python the module is a function: `fedsvd.run("+experiment=dp_eps1", seed=1)`.
"""

import os
import sys
from pathlib import Path
from typing import Any

from fedsvd import interrupt
from fedsvd.callables import make_callable
from fedsvd.calling import called, set_environment
from fedsvd.checkpoints.resuming import with_run_folder
from fedsvd.command import job, run_hydra
from fedsvd.composing import config_folder, explain
from fedsvd.errors import InputError, RunError, TrialsFailed
from fedsvd.execute import execute
from fedsvd.overrides import as_overrides, override
from fedsvd.results.collect import Finished, read_run
from fedsvd.terminal import as_failure, complain, guarded, one_line, say
from fedsvd.version import version_text

__all__ = ["config_folder", "execute", "explain", "main", "run"]


def run(
    *overrides: str, folder: str | Path | None = None, show: bool = True, **values: Any
) -> Finished:
    """Run one configuration in this process and return the finished run.

    It is the run of `python -m fedsvd.run` with these overrides, with the same bits:

        fedsvd.run("+experiment=dp_eps1", "strategy=ffa", seed=1, **{"privacy.epsilon": 3})

    Ctrl-C lets the round finish and raises KeyboardInterrupt. Its message names the call that goes
    on. Afterwards argv, loggers, Hydra's state, the environment, the working directory, PyTorch's
    threads and all global generators are as they were.

    Args:
        overrides: texts as on the command line.
        folder: `hydra.run.dir`, by default outputs/DATE/TIME.
        show: whether the run prints its lines; without it only warnings are printed.
        values: keys with values of Python, nested ones by their dotted name;
            `experiment="quickstart"` is `+experiment=quickstart`.

    Raises:
        InputError: something cannot be used; no work was done.
        RunError: the run cannot go on. Both have the line that the command prints.
    """
    arguments = as_overrides(overrides, values)
    if folder is not None:
        arguments.append(override("hydra.run.dir", folder))
    places: list[Path] = []

    def noted(config: Any) -> float:
        from hydra.core.hydra_config import HydraConfig

        places.append(Path(HydraConfig.get().runtime.output_dir))
        return job(config)

    with called(show):
        run_hydra(with_run_folder(arguments), noted)
    return read_run(places[0])


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status; whatever is wrong is told in one line."""
    set_environment()
    with guarded():
        return _told(sys.argv[1:] if arguments is None else arguments)


def _told(arguments: list[str]) -> int:
    """Run the command line, tell what ended it, and return the exit status."""
    debug = os.environ.get("FEDSVD_DEBUG") == "1"
    try:
        with interrupt.listening():
            return _main(arguments)
    except (InputError, RunError, TrialsFailed) as error:
        # A line for each trial that failed; one for all else.
        text = str(error)
        complain(f"error: {text if isinstance(error, TrialsFailed) else one_line(text)}")
        if debug:
            raise
        if isinstance(error, TrialsFailed):
            return error.status
        return 2 if isinstance(error, InputError) else 1
    except interrupt.Interrupted as stop:
        complain(str(stop))
        return stop.status
    except Exception as error:
        if debug:
            raise
        complain(f"error: {as_failure(error)}")
        return 1


def _main(arguments: list[str]) -> int:
    if "--version" in arguments:
        say(version_text())
        return 0
    if "--list" in arguments:
        from fedsvd.listing import listing

        say(listing(config_folder()))
        return 0
    if "--plan" in arguments:
        from omegaconf import OmegaConf

        from fedsvd.composing import compose
        from fedsvd.config import from_config

        config = compose([a for a in arguments if a != "--plan"])
        composed: Any = OmegaConf.to_container(config, resolve=True)
        settings = from_config(composed)
        from fedsvd.footprint.plan import make_plan, told  # PyTorch is slow to import

        for line in told(make_plan(settings), settings):
            say(line)
        return 0
    asks = [a for a in arguments if a in ("--help", "-h")]
    if asks and "--hydra-help" not in arguments:
        from fedsvd.helping import help_text

        say(help_text(config_folder(), [a for a in arguments if not a.startswith("-")]))
        return 0
    run_hydra(with_run_folder(arguments), job)
    return 0


make_callable(__name__)

if __name__ == "__main__":
    sys.exit(main())
