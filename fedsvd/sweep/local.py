"""A sweep in this process: its trials one after another."""

import os
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from hydra.core.utils import JobReturn, JobStatus, configure_log, run_job, setup_globals
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig
from omegaconf.errors import OmegaConfBaseException

from fedsvd.errors import InputError, RunError
from fedsvd.sweep.account import Account, Failure, failed, names
from fedsvd.sweep.compose import checked, compose_trial, plain
from fedsvd.terminal import as_failure, one_line, say


def launch(
    context: HydraContext, config: DictConfig, task: TaskFunction,
    job_overrides: Sequence[Sequence[str]], first: int,
) -> list[JobReturn]:  # fmt: skip
    """Run one trial for each list of overrides, numbered from `first`; return Hydra's account.

    A trial that fails, or whose input is refused, leaves the others alone. Callbacks see it as
    failed, and sweepers that look at its value get the error that ends the command.
    """
    setup_globals()
    configure_log(config.hydra.hydra_logging, config.hydra.verbose)
    Path(str(config.hydra.sweep.dir)).mkdir(parents=True, exist_ok=True)
    named = list(enumerate(names(job_overrides), first))
    composed = [
        compose_trial(context.config_loader, config, given, first + i)
        for i, given in enumerate(job_overrides)
    ]
    for (number, name), trial in zip(named, composed, strict=True):
        _foretell(trial, f"trial {number} ({name})")
    accounts: list[Account] = []
    failures: list[Failure] = []
    for (number, name), trial in zip(named, composed, strict=True):
        say(f"trial {number} ({name})")
        try:
            done = run_job(task, trial, "hydra.sweep.dir", "hydra.sweep.subdir", context)
        finally:
            configure_log(config.hydra.hydra_logging, config.hydra.verbose)
        if done.status is not JobStatus.COMPLETED:
            failures.append(_failure(number, name, done._return_value))
            _let_go(done._return_value)
            say(f"trial {number} ({name}) failed: {failures[-1].reason}")
        accounts.append(
            Account(
                done.overrides, done.cfg, done.hydra_cfg, done.working_dir, done.task_name,
                done.status, done._return_value,
            )
        )  # fmt: skip
    if failures:
        error = failed(failures, len(accounts))
        for account in accounts:
            if account.status is not JobStatus.COMPLETED:
                account.return_value = error
    return list(accounts)


def _foretell(trial: DictConfig, name: str) -> None:
    """Say before the first trial which ones will be refused, where their settings show it."""
    try:
        checked(plain(trial))
    except (InputError, OmegaConfBaseException) as error:
        say(f"{name} will be refused: {one_line(str(error))}")


def _failure(number: int, name: str, error: Any) -> Failure:
    if isinstance(error, Exception) and os.environ.get("FEDSVD_DEBUG") == "1":
        raise error
    told = isinstance(error, (InputError, RunError))
    reason = one_line(str(error)) if told else as_failure(error)
    return Failure(number, name, reason, isinstance(error, InputError))


def _let_go(error: Any) -> None:
    """Let an error keep its text and nothing of where it came from: a trial's model is there."""
    seen: list[Any] = []
    while isinstance(error, BaseException) and error not in seen:
        seen.append(error)
        error.__traceback__ = None
        error = error.__cause__ or error.__context__
