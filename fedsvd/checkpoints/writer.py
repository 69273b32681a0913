"""When checkpoints are written, which are kept, and which is the best."""

import hashlib
from collections.abc import Mapping
from pathlib import Path
from typing import Any, final

from fedsvd.checkpoints.resume import METRICS, round_file, round_files, save
from fedsvd.files import link, private_folder
from fedsvd.rounds.evaluation import score
from fedsvd.rounds.run import Run


@final
class CheckpointWriter:
    """Writes checkpoints/ of a run folder, each with the digest of metrics.jsonl as it stands then.

    `resumed` are the facts of the checkpoint that the run goes on from, None for a new one.
    """

    def __init__(self, folder: Path, resumed: Mapping[str, Any] | None = None) -> None:
        self._metrics, self._folder = folder / METRICS, folder / "checkpoints"
        self._best = -1.0 if resumed is None else float(resumed["best"])
        self._bytes, self._hash = 0, hashlib.sha256()

    def round(self, run: Run) -> None:
        """Write what is due after the last round in the run's history, which its metrics hold."""
        metrics, settings = run.history[-1], run.settings.recorder
        number = run.state.round
        found = score(metrics)
        best = found is not None and found > self._best
        due = number % settings.checkpoint_every == 0 or number == run.rounds or "ended" in metrics
        if found is not None and best:
            self._best = found
        if best or due:
            self.halt(run)
        if best:
            link(round_file(self._folder, number), self._folder / "best.safetensors")

    def halt(self, run: Run) -> None:
        """Write a checkpoint of where the run stands."""
        self._read_on()
        private_folder(self._folder)
        path = round_file(self._folder, run.state.round)
        metrics = {"bytes": self._bytes, "sha256": self._hash.hexdigest()}
        save(run, path, {"metrics": metrics, "best": self._best})
        link(path, self._folder / "last.safetensors")
        for old in round_files(self._folder)[run.settings.recorder.keep :]:
            if old != path:
                old.unlink(missing_ok=True)

    def _read_on(self) -> None:
        """Take what was appended to metrics.jsonl since the last checkpoint into its digest."""
        if not self._metrics.exists():
            return
        with self._metrics.open("rb") as file:
            file.seek(self._bytes)
            added = file.read()
        self._hash.update(added)
        self._bytes += len(added)
