"""What a run writes while it goes: metrics, ledger, checkpoints, and what is asked for beside."""

import hashlib
import json
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, final

from fedsvd.errors import InputError
from fedsvd.results.files import append_line, clean, link, write_bytes, write_json, write_text
from fedsvd.results.resume import round_file, round_files, save

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

    def halt(self, run: "Run") -> None:  # noqa: B027
        """Take a run that stops here and may be resumed; the default keeps nothing."""


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

    def halt(self, run: "Run") -> None:
        """Tell every member that the run stops here."""
        for member in self._members:
            member.halt(run)

    def finish(self, run: "Run", summary: Mapping[str, Any]) -> None:
        """Give the summary to every member."""
        for member in self._members:
            member.finish(run, summary)


@final
class FileRecorder(Recorder):
    """Writes the run folder: configuration, metrics, ledger, checkpoints, exports, summary.

    `resumed` are the facts of the checkpoint that the run goes on from, None for a new one.
    """

    def __init__(self, folder: Path, config: str, resumed: Mapping[str, Any] | None = None) -> None:
        self._folder, self._config = folder, config
        self._metrics, self._checkpoints = folder / "metrics.jsonl", folder / "checkpoints"
        self._resumed = resumed
        self._best = -1.0 if resumed is None else float(resumed["best"])
        self._bytes, self._hash = 0, hashlib.sha256()

    def start(self, run: "Run") -> None:
        """Write the resolved configuration and the privacy plan; cut off rounds to be done again."""
        write_text(self._folder / "config.yaml", self._config)
        write_json(self._folder / "privacy.json", run.ledger.as_dict())
        if self._resumed is not None:
            done = self._metrics.read_bytes()[: self._resumed["metrics"]["bytes"]]
            write_bytes(self._metrics, done)
            self._count(done)
        elif self._metrics.exists():  # of a run that stopped before its first checkpoint
            write_bytes(self._metrics, b"")

    def round(self, run: "Run", metrics: Mapping[str, Any]) -> None:
        """Append the round's line, rewrite the ledger and, if they are due, the checkpoints."""
        line = json.dumps(clean(metrics))
        append_line(self._metrics, line)
        self._count(line.encode() + b"\n")
        write_json(self._folder / "privacy.json", run.ledger.as_dict())
        number, settings = run.state.round, run.settings.recorder
        best = metrics.get("accuracy", -1.0) > self._best
        due = number % settings.checkpoint_every == 0 or number == run.rounds or "ended" in metrics
        if best:
            self._best = metrics["accuracy"]
        if best or due:
            self._checkpoint(run)
        if best:
            link(round_file(self._checkpoints, number), self._checkpoints / "best.safetensors")

    def halt(self, run: "Run") -> None:
        """Write a checkpoint of where the run stopped."""
        write_json(self._folder / "privacy.json", run.ledger.as_dict())
        self._checkpoint(run)

    def _checkpoint(self, run: "Run") -> None:
        path = round_file(self._checkpoints, run.state.round)
        told = {"bytes": self._bytes, "sha256": self._hash.hexdigest()}
        save(run, path, {"metrics": told, "best": self._best})
        link(path, self._checkpoints / "last.safetensors")
        for old in round_files(self._checkpoints)[run.settings.recorder.keep :]:
            if old != path:
                old.unlink(missing_ok=True)

    def _count(self, data: bytes) -> None:
        self._bytes += len(data)
        self._hash.update(data)

    def finish(self, run: "Run", summary: Mapping[str, Any]) -> None:
        """Write the adapter, the classifier's head, the report and, last, the summary."""
        from fedsvd.results.export import export_adapter, export_classifier
        from fedsvd.results.report import write_report

        write_json(self._folder / "privacy.json", run.ledger.as_dict())
        written = export_adapter(run.worker, run.state, self._folder)
        export_classifier(run.worker, run.state, self._folder / "classifier", written)
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


def make_recorder(
    name: str,
    folder: Path,
    config: str,
    screen: Recorder,
    resumed: Mapping[str, Any] | None = None,
) -> Recorder:
    """Return the recorders of `recorder.name`, with what shows the run on the screen."""
    members: list[Recorder] = [FileRecorder(folder, config, resumed)]
    if name == "tensorboard":
        members.append(TensorBoardRecorder(folder))
    return Recorders([*members, screen])
