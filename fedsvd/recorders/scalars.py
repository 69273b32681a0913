"""Records as flat numbers and texts, as tables and trackers take them."""

import math
from collections.abc import Mapping
from typing import Any

from fedsvd.rounds.record import Start


def scalars(values: Mapping[str, Any]) -> dict[str, float]:
    """Return the finite numbers of a round's metrics or of a summary, but for the round itself."""
    return {
        name: value
        for name, value in values.items()
        if isinstance(value, (int, float)) and not isinstance(value, bool)
        and math.isfinite(value) and name != "round"
    }  # fmt: skip


def texts(values: Mapping[str, Any]) -> dict[str, str]:
    """Return the texts of a summary."""
    return {name: value for name, value in values.items() if isinstance(value, str) and value}


def name_of(start: Start) -> str:
    """Return the run's name for trackers."""
    settings = start.settings
    method = settings.strategy.target.rpartition(".")[2]
    return settings.recorder.run_name or f"{start.task.name} {method} seed {settings.seed}"
