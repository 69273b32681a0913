"""Weights & Biases: rounds, settings and the summary as a run there, offline unless asked."""

import secrets
from pathlib import Path
from typing import Any, final

from fedsvd.files import write_text
from fedsvd.recorders.recorder import Recorder
from fedsvd.recorders.scalars import name_of, scalars, texts
from fedsvd.rounds.record import RoundRecord, Start, Summary
from fedsvd.settings.flat import dotted


@final
class WandbRecorder(Recorder):
    """Writes a run of W&B into the run folder's wandb/; `group` is that of a sweep's runs.

    Only what is logged here is sent: W&B's own capture of the screen, of code, Git, the machine and
    its load is off. A run that goes on is the same run there.
    """

    def __init__(self, folder: Path, group: str | None, resumed: bool = False) -> None:
        self._folder, self._group, self._resumed = folder, group, resumed
        self._run: Any = None

    def start(self, start: Start) -> None:
        """Begin the run, or go on with it."""
        import wandb

        chosen, known = start.settings.recorder, self._folder / "wandb" / "run.id"
        if not (self._resumed and known.is_file()):
            write_text(known, secrets.token_hex(4))
        quiet = wandb.Settings(
            console="off", silent=True, disable_git=True, disable_code=True, save_code=False,
            x_disable_meta=True, x_disable_stats=True, x_disable_machine_info=True,
        )  # fmt: skip
        self._run = wandb.init(
            project=chosen.project, group=chosen.group or self._group, name=name_of(start),
            dir=str(self._folder), mode="online" if chosen.mode == "online" else "offline",
            id=known.read_text(encoding="utf-8").strip(), resume="allow",
            config=dotted(start.settings), settings=quiet, reinit="create_new",
        )  # fmt: skip

    def round(self, record: RoundRecord) -> None:
        """Log the numbers of the round."""
        self._run.log(scalars(record.metrics), step=record.round)

    def finish(self, summary: Summary) -> None:
        """Write the summary and end the run."""
        self._run.summary.update({**scalars(summary.values), **texts(summary.values)})
        self._run.finish()
        self._run = None

    def close(self) -> None:
        """End a run that did not come to its end, as failed."""
        if self._run is not None:
            self._run.finish(exit_code=1)
            self._run = None
