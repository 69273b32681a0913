"""What Hydra's sweepers read of trials, and the error in which those that failed are told."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, final

from hydra.core.utils import JobReturn, JobStatus, filter_overrides

from fedsvd.errors import TrialsFailed
from fedsvd.terminal import one_line


@final
class Account(JobReturn):
    """A trial's outcome; other than Hydra's it prints nothing when a failed one is looked at."""

    @property
    def return_value(self) -> Any:
        """The figure of a trial that is complete; raises what a failed one ended with."""
        if self.status is JobStatus.COMPLETED:
            return self._return_value
        raise self._return_value

    @return_value.setter
    def return_value(self, value: Any) -> None:
        self._return_value = value


@dataclass(frozen=True)
class Failure:
    """A trial that failed: its number and name, why, and whether its input was refused."""

    number: int
    name: str
    reason: str
    refused: bool

    def __str__(self) -> str:
        return one_line(f"trial {self.number} ({self.name}): {self.reason}")


def failed(failures: Sequence[Failure], trials: int) -> TrialsFailed:
    """Return the error that ends a sweep of so many trials: status 2 if all were refused, else 1."""
    refused = len(failures) == trials and all(f.refused for f in failures)
    if trials == 1:
        return TrialsFailed(str(failures[0]), 2 if refused else 1)
    lines = "".join(f"\n  {failure}" for failure in failures)
    return TrialsFailed(f"{len(failures)} of {trials} trials failed{lines}", 2 if refused else 1)


def names(given: Sequence[Sequence[str]]) -> list[str]:
    """Return a name for each trial: of its overrides those that not all trials share."""
    shared = set.intersection(*(set(g) for g in given)) if len(given) > 1 else set()
    return [" ".join(o for o in filter_overrides(g) if o not in shared) for g in given]
