"""The driver of a sweep: composes the trials, deals them to a Ray cluster, tells how they go."""

import os
import sys
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import ray
from hydra.core.config_loader import ConfigLoader
from hydra.core.utils import JobReturn, JobStatus, setup_globals
from omegaconf import DictConfig, OmegaConf

from fedsvd.engines.cluster import connect, room_for
from fedsvd.engines.slices import free, value_of
from fedsvd.errors import InputError, one_of, wrong
from fedsvd.kinds import fitting
from fedsvd.objectives.metric import metric_of
from fedsvd.settings import EngineSettings
from fedsvd.settings.checks import at_least
from fedsvd.sweep.account import Account, Failure, failed, names
from fedsvd.sweep.compose import checked, compose_trial, plain
from fedsvd.sweep.pool import Pool, Process
from fedsvd.sweep.progress import Progress, State, Trial
from fedsvd.sweep.trial import LOG, SUMMARY, Order, Outcome, set_aside
from fedsvd.terminal import say
from fedsvd.waiting import Notice


@dataclass(frozen=True)
class Options:
    """The launcher's settings; see configs/hydra/launcher/ray.yaml."""

    num_cpus: float | None = None
    num_gpus: float = 0.0
    concurrent: int | None = None
    retries: int = 2
    reuse: bool = True
    address: str | None = None

    def __post_init__(self) -> None:
        for key in ("num_cpus", "num_gpus"):
            value = getattr(self, key)
            if value is not None and not 0 <= value < float("inf"):
                raise wrong(f"hydra.launcher.{key}", value, "0 or more")
        at_least("hydra.launcher.retries", self.retries, 0)
        if self.concurrent is not None:
            at_least("hydra.launcher.concurrent", self.concurrent, 1)


def launch(
    loader: ConfigLoader, config: DictConfig, options: Mapping[str, Any],
    job_overrides: Sequence[Sequence[str]], first: int,
) -> list[JobReturn]:  # fmt: skip
    """Run one trial for each list of overrides, numbered from `first`; return Hydra's account.

    A trial whose folder holds the finished run of the same settings is not run again. One that
    fails leaves the others alone. A trial whose process or node dies is run again from its
    beginning, which gives the same bits. Raises InputError before any work if the settings of any
    trial cannot be used.
    """
    setup_globals()
    for name in options:
        if name not in Options.__dataclass_fields__:
            raise one_of(f"hydra.launcher.{name}", name, Options.__dataclass_fields__)
    ours = Options(**fitting("hydra.launcher", Options, options))
    trials = [_compose(loader, config, given, first + i) for i, given in enumerate(job_overrides)]
    for trial, name in zip(trials, names(job_overrides), strict=True):
        trial.name = name
        _look(trial)
    if any(trial.state is State.WAITING for trial in trials):
        _run_all(trials, ours)
    else:
        Progress(trials).close()
    _report(Path(str(config.hydra.sweep.dir)))
    return [_account(trial, trials) for trial in trials]


def _report(folder: Path) -> None:
    """Write the sweep's report, if any of its trials is finished."""
    from fedsvd.results.sweep import report_sweep

    try:
        say(f"report: {report_sweep(folder)}")
    except InputError as error:
        say(f"no report: {error}")


def _compose(loader: ConfigLoader, config: DictConfig, given: Sequence[str], number: int) -> Trial:
    """Return a trial with its settings resolved and checked."""
    composed = compose_trial(loader, config, given, number)
    folder = Path(str(composed.hydra.sweep.dir)) / str(composed.hydra.sweep.subdir)
    overrides = OmegaConf.to_container(composed.hydra.overrides.task, resolve=False)
    values = plain(composed)
    try:
        settings = checked(values)
    except InputError as error:
        raise InputError(f"trial {number}: {error}") from error
    return Trial(number, folder.absolute(), values, [str(o) for o in overrides or ()], settings)


def _look(trial: Trial) -> None:
    """Take a finished run of the same settings as the trial's; InputError if it is another's."""
    if not (trial.folder / SUMMARY).exists():
        return
    kept = (trial.folder / "config.yaml").read_text(encoding="utf-8")
    given = {key: value for key, value in trial.config.items() if key != "resume"}
    if OmegaConf.create(kept) != OmegaConf.create(given):
        raise InputError(
            f"{trial.folder}: holds the run of other settings; choose another hydra.sweep.dir"
        )
    trial.found()


def _run_all(trials: Sequence[Trial], options: Options) -> None:
    """Run every trial that is waiting, on the cluster given or one started here."""
    started = connect(options.address, "hydra.launcher.address")
    waiting = [t for t in trials if t.state is State.WAITING]
    pool: Pool | None = None
    try:
        most = _most(waiting, options)
        cpus_of = partial(_cpus, options=options)
        pool = Pool(most, options.num_gpus, cpus_of, options.reuse)
        notice = Notice()
        before: list[Any] = []
        with Progress(trials) as progress:
            while waiting or pool.running:
                pool.deal(waiting, partial(_order, options=options))
                progress.update()
                done = pool.ready()
                stands = [(t.state, t.latest.get("round")) for t in trials]
                if done or stands != before:
                    notice.restart()
                before = stands
                notice.look(lambda: _awaited(trials))
                for process in done:
                    _settle(pool, process, waiting, options.retries)
            progress.update()
    finally:
        if pool is not None:
            pool.close()
        if started:
            ray.shutdown()


def _awaited(trials: Sequence[Trial]) -> str:
    """Return what a sweep waits for, as a phrase."""
    running = [t.number for t in trials if t.state is State.RUNNING]
    if not running:
        return f"a trial to start; {free()}"
    told = ", ".join(map(str, running))
    return f"a round of trials {told}, whose {LOG} tells more; {free()}"


def _cpus(trial: Trial, options: Options) -> float:
    """Return the CPUs that a trial holds: none by default where its workers are to have them."""
    if options.num_cpus is not None:
        return options.num_cpus
    return 0.0 if trial.settings.engine.name == "ray" else 1.0


def _most(trials: Iterable[Trial], options: Options) -> int:
    """Return how many trials may run at once; InputError if the cluster is too small for one."""
    most = sys.maxsize if options.concurrent is None else options.concurrent
    for trial in trials:
        cpus, engine = _cpus(trial, options), trial.settings.engine
        alone = EngineSettings("ray", num_cpus=cpus, num_gpus=options.num_gpus)
        if room_for(alone) < 1:
            has = {k: v for k, v in ray.cluster_resources().items() if k in ("CPU", "GPU")}
            raise InputError(
                f"hydra.launcher: a trial needs {cpus:g} CPUs and {options.num_gpus:g} GPUs "
                f"(hydra.launcher.num_cpus, num_gpus), and the Ray cluster has {has}"
            )
        if engine.name == "ray" and options.concurrent is None:
            workers = min(trial.settings.clients.per_round, room_for(engine)) or 1
            everywhere = room_for(EngineSettings(**{**asdict(engine), "workers": None}))
            most = min(most, max(1, everywhere // workers))
    return most


def _order(trial: Trial, options: Options) -> Order:
    """Return what a trial's process needs, with the trial's folder made ready for an attempt."""
    trial.folder.mkdir(parents=True, exist_ok=True)
    if trial.config.get("resume") != "auto":
        set_aside(trial.folder)
    trial.submitted()
    threads = max(1, int(_cpus(trial, options)))
    paths = [p for p in sys.path if p]
    return Order(trial.config, trial.overrides, trial.folder, threads, os.getcwd(), paths)


def _settle(pool: Pool, process: Process, waiting: list[Trial], retries: int) -> None:
    """Take what a process has done; a trial whose process died waits again, up to `retries` times.

    Retries are counted here, so that they are seen. A process that dies while it starts counts as an
    attempt at a trial that waits.
    """
    starting, trial = not process.started, process.trial
    try:
        outcome = value_of(process.reference)
        pool.free(process)
        if not starting:
            trial.ended(outcome)
        return
    except ray.exceptions.RayTaskError as error:  # it could not even begin
        told, reason = True, str(error.cause)
    except ray.exceptions.RayError as death:
        told, reason = False, f"its process died: {type(death).__name__}"
    pool.lose(process)
    if starting and trial not in waiting:
        if not waiting:
            return
        trial = waiting[0]
    if starting:
        trial.submitted()
        waiting.remove(trial)
    if not told and trial.attempts <= retries:
        trial.died(reason)
        waiting.insert(0, trial)
        return
    attempts = f" ({trial.attempts} attempts)" if trial.attempts > 1 else ""
    trial.ended(Outcome(reason=f"{reason}{attempts}"))


def _account(trial: Trial, trials: Sequence[Trial]) -> JobReturn:
    """Return what Hydra's sweepers read: the run's figure, or the failure that ends the command."""
    account = Account(overrides=[trial.name], task_name=str(trial.number))
    account.status = JobStatus.COMPLETED if trial.summary else JobStatus.FAILED
    if trial.summary:
        account.return_value = trial.summary[metric_of(trial.summary).name]
        return account
    failures = [Failure(t.number, t.name, t.reason, t.refused) for t in trials if not t.summary]
    account.return_value = failed(failures, len(trials))
    return account
