"""What a run tells while it goes. A recorder takes plain records and never sees the run itself."""

from fedsvd.recorders.recorder import Recorder
from fedsvd.rounds.record import ModelRecord, RoundRecord, Start, Summary, TaskRecord

__all__ = ["ModelRecord", "Recorder", "RoundRecord", "Start", "Summary", "TaskRecord"]
