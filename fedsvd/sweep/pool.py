"""The processes of a sweep: each runs one trial after another, and keeps what the next can use."""

import gc
from collections.abc import Callable, Hashable, Sequence
from dataclasses import dataclass
from typing import Any, final

import ray

from fedsvd.engines.cluster import room_for
from fedsvd.engines.slices import first_ready
from fedsvd.settings import EngineSettings
from fedsvd.sweep.progress import Trial
from fedsvd.sweep.trial import Order, Outcome, run_trial


@ray.remote(max_restarts=0)
class TrialActor:
    """A process for trials."""

    def ready(self) -> None:
        """Import what a trial needs, while the driver looks at something else."""
        import peft  # noqa: F401
        import transformers  # noqa: F401

        import fedsvd.experiment  # noqa: F401

        gc.collect()
        gc.freeze()  # modules stay: whoever looks for what is given up need not look there

    def run(self, order: Order) -> Outcome:
        """Run a trial."""
        return run_trial(order)


@dataclass
class Process:
    """An actor, the CPUs that it holds, and what it is at: its start, or a trial."""

    actor: Any
    cpus: float
    reference: Any
    trial: Trial
    started: bool = False
    busy: bool = True
    last: Hashable = None  # what its last trial was made of


@final
class Pool:
    """Asks the cluster for processes, and deals a sweep's trials to them.

    `most`: trials at once. `cpus_of` says how many CPUs a trial needs; a process has those of its
    trials for as long as there are trials for it. With `reuse` false it is given up after one.
    """

    def __init__(
        self, most: int, gpus: float, cpus_of: Callable[[Trial], float], reuse: bool
    ) -> None:
        self._most, self._gpus, self._cpus_of, self._reuse = most, gpus, cpus_of, reuse
        self._processes: list[Process] = []

    @property
    def running(self) -> list[Trial]:
        """The trials that have a process."""
        return [p.trial for p in self._processes if p.started and p.busy]

    def deal(self, waiting: list[Trial], order: Callable[[Trial], Order]) -> None:
        """Give waiting trials to processes that have none, and ask for more processes or fewer.

        A trial goes where one of the same data and model was before it, if there is one.
        """
        for process in [p for p in self._processes if p.started and not p.busy]:
            fits = [t for t in waiting if self._cpus_of(t) == process.cpus]
            if not fits or len(self.running) >= self._most:
                self._give_up(process)
                continue
            trial = next((t for t in fits if likeness(t) == process.last), fits[0])
            waiting.remove(trial)
            process.trial, process.busy, process.last = trial, True, likeness(trial)
            process.reference = process.actor.run.remote(order(trial))
        starting = [p for p in self._processes if not p.started]
        for cpus in {self._cpus_of(t) for t in waiting} | {p.cpus for p in starting}:
            self._ask(cpus, [t for t in waiting if self._cpus_of(t) == cpus])

    def _ask(self, cpus: float, waiting: Sequence[Trial]) -> None:
        """Have as many processes under way as these trials can use, and the cluster may get."""
        own = [p for p in self._processes if p.cpus == cpus]
        starting = [p for p in own if not p.started]
        # Twice what there is room for: a cluster that grows on demand must see some.
        free = cpus == 0 and self._gpus == 0
        alone = EngineSettings("ray", num_cpus=cpus, num_gpus=self._gpus)
        room = self._most if free else 2 * max(1, room_for(alone))
        wanted = min(len(waiting), self._most - len(self.running), room - len(own) + len(starting))
        for process in starting[max(0, wanted) :]:
            self._give_up(process)
        options = {"num_cpus": cpus, "num_gpus": self._gpus}
        for trial in waiting[len(starting) : max(0, wanted)]:
            actor = TrialActor.options(**options).remote()  # type: ignore[attr-defined]
            self._processes.append(Process(actor, cpus, actor.ready.remote(), trial))

    def ready(self) -> list[Process]:
        """Return a process that has done what it was at, or none after a slice of waiting."""
        done = first_ready([p.reference for p in self._processes if p.busy])
        return [p for p in self._processes if p.busy and p.reference in done]

    def free(self, process: Process) -> None:
        """Take note that a process has done what it was at."""
        again = self._reuse or not process.started
        process.busy, process.started = False, True
        if not again:
            self._give_up(process)

    def lose(self, process: Process) -> None:
        """Take note that a process is no more, or of no use."""
        self._give_up(process)

    def close(self) -> None:
        """Give up all processes, whatever they are at."""
        for process in tuple(self._processes):
            self._give_up(process)

    def _give_up(self, process: Process) -> None:
        self._processes.remove(process)
        ray.kill(process.actor, no_restart=True)


def likeness(trial: Trial) -> Hashable:
    """Return what trials share that can use each other's texts, tokens and weights."""
    return repr((trial.settings.data, trial.settings.model))
