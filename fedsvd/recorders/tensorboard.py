"""Scalars for TensorBoard."""

from pathlib import Path
from typing import final

from fedsvd.recorders.recorder import Recorder
from fedsvd.recorders.scalars import scalars
from fedsvd.rounds.record import RoundRecord, Start, Summary


@final
class TensorBoardRecorder(Recorder):
    """Writes scalars for TensorBoard into the run folder's tensorboard/."""

    def __init__(self, folder: Path) -> None:
        from torch.utils.tensorboard import SummaryWriter

        self._writer = SummaryWriter(str(folder / "tensorboard"))

    def start(self, start: Start) -> None:
        """Nothing to write yet."""

    def round(self, record: RoundRecord) -> None:
        """Write the numbers of the round."""
        for name, value in scalars(record.metrics).items():
            self._writer.add_scalar(name, value, record.round)
        self._writer.flush()

    def finish(self, summary: Summary) -> None:
        """Close the event file."""
        self._writer.close()

    def close(self) -> None:
        """Close the event file."""
        self._writer.close()
