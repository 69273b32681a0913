"""The model card beside exported weights, in the form that PEFT and the hub read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

CARD = "README.md"


def write_card(folder: Path, summary: Mapping[str, Any], library: str) -> None:
    """Write README.md of an exported model: what it is, and what its training gave away.

    `summary` holds what summary.json gets; `library` ("peft" or "transformers") is what loads the
    folder. The base model is named in the card's metadata unless it is a folder, as the hub knows
    names alone.
    """
    model = _line(summary["model"])
    # JSON is YAML, and quotes what a name may hold.
    head = [] if Path(model).exists() else [f"base_model: {json.dumps(model)}"]
    head += [f"library_name: {library}", "tags: [federated-learning, fedsvd]"]
    lines = [
        "---", *head, "---", "",
        f"# {_line(summary['task'])}: {_line(summary['adapter'])} for {_line(model)}",
        "",
        f"- Base model: {model}",
        f"- Task: {_line(summary['task'])}",
        f"- Head: {_line(summary['head'])} ({_line(summary['head_form'])})",
        f"- Strategy: {_line(summary['strategy'])}, {summary['rounds_completed']} rounds",
        *([f"- Averaging: {_line(summary['averaging'])}"] if summary.get("average_digest") else []),
        f"- Privacy: {_privacy(summary)}",
        f"- Noise: {_line(summary['noise_source'])}",
    ]  # fmt: skip
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _privacy(summary: Mapping[str, Any]) -> str:
    if summary["epsilon_max"] is None:
        return "none"
    above = summary.get("epsilon_above_target")
    more = f", ABOVE its target {summary['epsilon_target']:g}" if above else ""
    return (
        f"epsilon {summary['epsilon_max']:.4f} at delta {summary['delta']:g}, "
        f"unit: one {summary['unit']} (the largest of any client){more}"
    )


def _line(text: object) -> str:
    """Return a text on one line: a name cannot add lines to the card."""
    return " ".join(str(text).split())
