"""Settings on one level."""

import dataclasses
from collections.abc import Mapping
from typing import Any

from fedsvd.settings.run import Settings


def dotted(settings: Settings) -> dict[str, Any]:
    """Return settings by dotted key; what is empty is a value, and a tuple is a list."""
    found: dict[str, Any] = {}

    def walk(prefix: str, value: Any) -> None:
        if isinstance(value, Mapping) and value:
            for key, inner in value.items():
                walk(f"{prefix}.{key}" if prefix else str(key), inner)
        else:
            found[prefix] = list(value) if isinstance(value, tuple) else value

    walk("", dataclasses.asdict(settings))
    return found
