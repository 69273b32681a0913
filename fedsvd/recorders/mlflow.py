"""MLflow: rounds, settings and the summary as a run of an experiment."""

import os
import time
import warnings
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from pathlib import Path
from typing import Any, final

from fedsvd.errors import InputError
from fedsvd.files import write_text
from fedsvd.recorders.recorder import Recorder
from fedsvd.recorders.scalars import name_of, scalars, texts
from fedsvd.rounds.record import RoundRecord, Start, Summary
from fedsvd.settings.flat import dotted

MOST = 100  # parameters or tags in one call
LONGEST = 500  # of a parameter's or tag's value


@final
class MlflowRecorder(Recorder):
    """Writes a run of MLflow, by its client alone: nothing global in this process is set.

    `recorder.store` says where; without one it is a database in the run folder. Runs of a sweep share
    the tag `fedsvd.group`. A run that goes on is the same run there.
    """

    def __init__(self, folder: Path, group: str | None, resumed: bool = False) -> None:
        self._folder, self._group, self._resumed = folder, group, resumed
        self._client: Any = None
        self._id = ""

    def start(self, start: Start) -> None:
        """Begin the run, or go on with it; InputError if the store cannot be used."""
        chosen, inside = start.settings.recorder, self._folder / "mlflow"
        store = chosen.store or f"sqlite:///{(inside / 'mlflow.db').resolve()}"
        inside.mkdir(parents=True, exist_ok=True)
        known = inside / "run.id"
        with _calm():
            from mlflow.exceptions import MlflowException
            from mlflow.tracking import MlflowClient

            try:
                self._client = MlflowClient(tracking_uri=store)
                if self._resumed and known.is_file():
                    self._id = known.read_text(encoding="utf-8").strip()
                    self._client.update_run(self._id, status="RUNNING")
                    return
                self._id = self._begin(start, chosen.project, inside)
            except MlflowException as error:
                why = str(error).splitlines()[0][:200]
                raise InputError(f"recorder.store: {store!r} cannot be used: {why}") from error
        write_text(known, self._id)

    def _begin(self, start: Start, project: str, inside: Path) -> str:
        held = self._client.get_experiment_by_name(project)
        if held is None:
            place = (inside / "artifacts").resolve().as_uri()
            experiment = self._client.create_experiment(project, artifact_location=place)
        else:
            experiment = held.experiment_id
        group = start.settings.recorder.group or self._group
        tags = {"fedsvd.folder": str(self._folder), **({"fedsvd.group": group} if group else {})}
        made = self._client.create_run(experiment, tags=tags, run_name=name_of(start))
        from mlflow.entities import Param

        given = [Param(k, _short(v)) for k, v in dotted(start.settings).items()]
        for at in range(0, len(given), MOST):
            self._client.log_batch(made.info.run_id, params=given[at : at + MOST])
        return str(made.info.run_id)

    def round(self, record: RoundRecord) -> None:
        """Log the numbers of the round."""
        self._log(scalars(record.metrics), record.round)

    def finish(self, summary: Summary) -> None:
        """Write the summary, its numbers as `final_...`, and end the run."""
        numbers = {f"final_{name}": value for name, value in scalars(summary.values).items()}
        self._log(numbers, int(summary.values["rounds_completed"]))
        from mlflow.entities import RunTag

        tags = [RunTag(f"fedsvd.{k}", _short(v)) for k, v in texts(summary.values).items()]
        with _calm():
            self._client.log_batch(self._id, tags=tags[:MOST])
            self._client.set_terminated(self._id)
        self._client = None

    def close(self) -> None:
        """End a run that did not come to its end, as killed."""
        if self._client is not None and self._id:
            with _calm():
                self._client.set_terminated(self._id, status="KILLED")
        self._client = None

    def _log(self, numbers: Mapping[str, float], step: int) -> None:
        from mlflow.entities import Metric

        now = int(1000 * time.time())
        each = [Metric(name, value, now, step) for name, value in numbers.items()]
        with _calm():
            self._client.log_batch(self._id, metrics=each)


def _short(value: Any) -> str:
    text = str(value)
    return text if len(text) <= LONGEST else text[: LONGEST - 3] + "..."


@contextmanager
def _calm() -> Iterator[None]:
    """Keep MLflow and its database layer from calling home and from warning of themselves."""
    os.environ.setdefault("MLFLOW_DISABLE_TELEMETRY", "true")
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        yield
