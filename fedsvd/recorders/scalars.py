"""Records as flat numbers and texts, as tables and trackers take them."""

import dataclasses
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


def settings_of(start: Start) -> dict[str, Any]:
    """Return the run's settings by dotted key."""
    found: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            found[prefix] = list(value) if isinstance(value, tuple) else value

    walk("", dataclasses.asdict(start.settings))
    return found


def name_of(start: Start) -> str:
    """Return the run's name for trackers."""
    settings = start.settings
    method = settings.strategy.target.rpartition(".")[2]
    return settings.recorder.run_name or f"{start.task.name} {method} seed {settings.seed}"
