"""The command: Hydra in, results out.

    python -m fedsvd.run +experiment=dp_eps1
    python -m fedsvd.run -m +experiment=dp_eps1 privacy.epsilon=1,3,6 hydra/launcher=ray
    python -m fedsvd.run --list
    python -m fedsvd.run +experiment=dp_eps1 strategy._target_=my_lab.MyStrategy
    python -m fedsvd.run resume=outputs/2026-01-01/12-00-00

Exit status: 0 done, 2 the input is wrong, 1 a failure of ours, 130 / 143 interrupted.
"""

import os
import sys
from pathlib import Path
from typing import Any

from fedsvd import interrupt
from fedsvd.checkpoints.resuming import with_run_folder
from fedsvd.composing import config_folder, explain
from fedsvd.errors import InputError, RunError, TrialsFailed
from fedsvd.execute import execute, quiet
from fedsvd.terminal import complain, guarded, one_line, say

__all__ = ["config_folder", "execute", "explain", "main"]


def main(arguments: list[str] | None = None) -> int:
    """Run the command line and return the exit status; whatever is wrong is told in one line."""
    # Hydra would print its own shortened traceback and exit with 1; errors are told here instead.
    os.environ.setdefault("HYDRA_FULL_ERROR", "1")
    os.environ.setdefault("FLWR_TELEMETRY_ENABLED", "0")
    os.environ.setdefault("TOKENIZERS_PARALLELISM", "false")
    with guarded():
        return _told(sys.argv[1:] if arguments is None else arguments)


def _told(arguments: list[str]) -> int:
    """Run the command line, tell what ended it, and return the exit status."""
    debug = os.environ.get("FEDSVD_DEBUG") == "1"
    try:
        with interrupt.listening():
            return _main(arguments, debug)
    except (InputError, RunError) as error:
        _error(error)
        if debug:
            raise
        return 2 if isinstance(error, InputError) else 1
    except interrupt.Interrupted as stop:
        complain(str(stop))
        return stop.status
    except Exception as error:
        if debug:
            raise
        text = one_line(str(error))[:300]
        told = f"{type(error).__name__}: {text} (FEDSVD_DEBUG=1 shows where)"
        complain(f"error: a failure of this software: {told}")
        return 1


def _error(error: Exception) -> None:
    complain(f"error: {one_line(str(error))}")


def _main(arguments: list[str], debug: bool) -> int:
    import hydra
    from hydra.errors import HydraException
    from omegaconf.errors import OmegaConfBaseException

    if "--list" in arguments:
        from fedsvd.listing import listing

        quiet()
        say(listing(config_folder()))
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
        complain(f"error: {error}")  # a line for each trial that failed
        return error.status
    for refusal in refused[:-1]:
        _error(refusal)
    if refused:
        raise refused[-1]
    return 0


def _job(config: Any) -> float:
    """Run one composed configuration; its validation accuracy is what a sweeper optimises."""
    from hydra.core.hydra_config import HydraConfig

    hydra_config = HydraConfig.get()
    overrides = list(hydra_config.overrides.task)
    return execute(config, Path(hydra_config.runtime.output_dir), overrides)["accuracy"]


if __name__ == "__main__":
    sys.exit(main())
