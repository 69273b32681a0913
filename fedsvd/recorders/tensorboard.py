"""Scalars for TensorBoard."""

from pathlib import Path
from typing import final

from fedsvd.errors import InputError
from fedsvd.recorders.recorder import Recorder
from fedsvd.rounds.record import RoundRecord, Start, Summary

NAMES = (
    "accuracy", "loss", "examples", "subset_accuracy", "subset_loss", "train_loss", "epsilon_max",
    "bytes_up", "bytes_down",
)  # fmt: skip


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

    def start(self, start: Start) -> None:
        """Nothing to write yet."""

    def round(self, record: RoundRecord) -> None:
        """Write accuracy, loss, epsilon and bytes of the round."""
        for name in NAMES:
            if record.metrics.get(name) is not None:
                self._writer.add_scalar(name, record.metrics[name], record.round)
        self._writer.flush()

    def finish(self, summary: Summary) -> None:
        """Close the event file."""
        self._writer.close()
