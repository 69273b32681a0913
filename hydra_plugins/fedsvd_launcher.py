"""hydra/launcher=basic and ray. Hydra takes launchers from modules under this name only."""

from collections.abc import Sequence
from typing import Any, final

from hydra.core.utils import JobReturn
from hydra.plugins.launcher import Launcher
from hydra.types import HydraContext, TaskFunction
from omegaconf import DictConfig


@final
class RayLauncher(Launcher):
    """Runs a sweep's trials in processes of a Ray cluster; see configs/hydra/launcher/ray.yaml."""

    def __init__(self, **options: Any) -> None:
        self._options = options

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take the sweep's configuration; what a trial does is fedsvd.run's `execute`."""
        self._loader, self._config = hydra_context.config_loader, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run one trial for each list of overrides and return what came of it."""
        from fedsvd.sweep.launch import launch  # Hydra imports this module at every start

        return launch(self._loader, self._config, self._options, job_overrides, initial_job_idx)


@final
class LocalLauncher(Launcher):
    """Runs the trials of a sweep one after another in this process."""

    def setup(
        self, *, hydra_context: HydraContext, task_function: TaskFunction, config: DictConfig
    ) -> None:
        """Take the sweep's configuration and what a trial does."""
        self._context, self._task, self._config = hydra_context, task_function, config

    def launch(
        self, job_overrides: Sequence[Sequence[str]], initial_job_idx: int
    ) -> Sequence[JobReturn]:
        """Run one trial for each list of overrides and return what came of it."""
        from fedsvd.sweep.local import launch

        return launch(self._context, self._config, self._task, job_overrides, initial_job_idx)
