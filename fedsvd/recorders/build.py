"""From `recorder.name` to the recorders of a run."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsvd.recorders.recorder import FileRecorder, Recorder, Recorders
from fedsvd.recorders.tensorboard import TensorBoardRecorder


def make_recorder(
    name: str,
    folder: Path,
    config: str,
    screen: Recorder,
    resumed: Mapping[str, Any] | None = None,
) -> Recorder:
    """Return the recorders of `recorder.name`, with what shows the run on the screen.

    `config` is the resolved configuration. `resumed` are the facts of the checkpoint that the run
    goes on from, None for a new one.
    """
    kept = None if resumed is None else int(resumed["metrics"]["bytes"])
    members: list[Recorder] = [FileRecorder(folder, config, kept)]
    if name == "tensorboard":
        members.append(TensorBoardRecorder(folder))
    return Recorders([*members, screen])
