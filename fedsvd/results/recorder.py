"""What a run writes while it goes: metrics, ledger, checkpoints, and what is asked for beside."""

import json
import os
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from fedsvd.errors import InputError
from fedsvd.results.checkpoint import write_checkpoint

if TYPE_CHECKING:
    from fedsvd.experiment import Run


class Recorder(ABC):
    """Takes what happens in a run, as it happens."""

    @abstractmethod
    def start(self, run: "Run") -> None:
        """Take the run before its first round."""

    @abstractmethod
    def round(self, run: "Run", metrics: Mapping[str, Any]) -> None:
        """Take the metrics of a round; round 0 is the initial state."""

    @abstractmethod
    def finish(self, run: "Run", summary: Mapping[str, Any]) -> None:
        """Take the summary after the last round."""


@final
class Recorders(Recorder):
    """Several recorders as one, in order."""

    def __init__(self, members: Sequence[Recorder]) -> None:
        self._members = list(members)

    def start(self, run: "Run") -> None:
        """Start every member."""
        for member in self._members:
            member.start(run)

    def round(self, run: "Run", metrics: Mapping[str, Any]) -> None:
        """Give the metrics to every member."""
        for member in self._members:
            member.round(run, metrics)

    def finish(self, run: "Run", summary: Mapping[str, Any]) -> None:
        """Give the summary to every member."""
        for member in self._members:
            member.finish(run, summary)


@final
class FileRecorder(Recorder):
    """Writes the run folder: configuration, metrics, ledger, checkpoints, exports, summary."""

    def __init__(self, folder: Path, config: str) -> None:
        self._folder, self._config = folder, config
        self._best = -1.0

    def start(self, run: "Run") -> None:
        """Write the resolved configuration and the privacy plan."""
        write_text(self._folder / "config.yaml", self._config)
        write_json(self._folder / "privacy.json", run.ledger.as_dict())

    def round(self, run: "Run", metrics: Mapping[str, Any]) -> None:
        """Append the round's line, rewrite the ledger and the last (and best) checkpoint."""
        with (self._folder / "metrics.jsonl").open("a", encoding="utf-8") as file:
            file.write(json.dumps(clean(metrics)) + "\n")
        write_json(self._folder / "privacy.json", run.ledger.as_dict())
        checkpoints = self._folder / "checkpoints"
        write_checkpoint(checkpoints / "last.safetensors", run.state)
        if metrics.get("accuracy", -1.0) > self._best:
            self._best = metrics["accuracy"]
            write_checkpoint(checkpoints / "best.safetensors", run.state)

    def finish(self, run: "Run", summary: Mapping[str, Any]) -> None:
        """Write the adapter, the classifier's head, the report and, last, the summary."""
        from fedsvd.results.export import export_adapter, export_classifier
        from fedsvd.results.report import write_report

        export_adapter(run.worker, run.state, self._folder / "adapter")
        export_classifier(run.worker, run.state, self._folder / "classifier")
        write_report(self._folder / "report.html", run, summary)
        write_json(self._folder / "summary.json", summary)


@final
class TensorBoardRecorder(Recorder):
    """Writes scalars for TensorBoard into the run folder's tensorboard/."""

    def __init__(self, folder: Path) -> None:
        try:
            from torch.utils.tensorboard import SummaryWriter
        except ImportError as error:
            raise InputError(
                "recorder: 'tensorboard' needs the tensorboard package: "
                "pip install fedsvd[tensorboard]"
            ) from error
        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def start(self, run: "Run") -> None:
        """Nothing to write yet."""

    def round(self, run: "Run", metrics: Mapping[str, Any]) -> None:
        """Write accuracy, loss, epsilon and bytes of the round."""
        for name in ("accuracy", "loss", "train_loss", "epsilon_max", "bytes_up", "bytes_down"):
            if metrics.get(name) is not None:
                self._writer.add_scalar(name, metrics[name], metrics["round"])
        self._writer.flush()

    def finish(self, run: "Run", summary: Mapping[str, Any]) -> None:
        """Close the event file."""
        self._writer.close()


def make_recorder(name: str, folder: Path, config: str, screen: Recorder) -> Recorder:
    """Return the recorders of `recorder.name`, with what shows the run on the screen."""
    members: list[Recorder] = [FileRecorder(folder, config)]
    if name == "tensorboard":
        members.append(TensorBoardRecorder(folder))
    return Recorders([*members, screen])


def write_text(path: Path, text: str) -> None:
    """Write a file aside and move it into place, so that a reader never sees half of it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    aside = path.with_name(path.name + ".tmp")
    aside.write_text(text, encoding="utf-8")
    os.replace(aside, path)


def write_json(path: Path, value: Any) -> None:
    """Write JSON as `write_text` does; NaN and infinities become null."""
    write_text(path, json.dumps(clean(value), indent=2) + "\n")


def clean(value: Any) -> Any:
    """Return `value` with NaN and infinities, which JSON lacks, as None."""
    if isinstance(value, Mapping):
        return {str(k): clean(v) for k, v in value.items()}
    if isinstance(value, (list, tuple)):
        return [clean(v) for v in value]
    if isinstance(value, float) and not abs(value) < float("inf"):
        return None
    return value
