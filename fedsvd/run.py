"""The command: Hydra in, results out.

    python -m fedsvd.run +experiment=dp_eps1
    python -m fedsvd.run -m +experiment=dp_eps1 privacy.epsilon=1,3,6 hydra/launcher=ray
    python -m fedsvd.run --list
    python -m fedsvd.run +experiment=dp_eps1 --plan
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
from fedsvd.command import run_hydra
from fedsvd.composing import config_folder, explain
from fedsvd.errors import InputError, RunError, TrialsFailed
from fedsvd.execute import execute
from fedsvd.objectives.metric import metric_of
from fedsvd.terminal import as_failure, complain, guarded, one_line, say

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
    run_hydra(with_run_folder(arguments), _job)
    return 0


def _job(config: Any) -> float:
    """Run one composed configuration; its figure of validation is what a sweeper optimises."""
    from hydra.core.hydra_config import HydraConfig
    from omegaconf import OmegaConf

    hydra_config = HydraConfig.get()
    overrides = OmegaConf.to_container(hydra_config.overrides.task, resolve=False)
    assert isinstance(overrides, list)
    summary = execute(config, Path(hydra_config.runtime.output_dir), overrides)
    return float(summary[metric_of(summary).name])


if __name__ == "__main__":
    sys.exit(main())
