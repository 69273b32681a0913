"""The model card beside exported weights, in the form that PEFT and the hub read."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from fedsvd.objectives.metric import GENERATED
from fedsvd.rounds.record import SHARED

CARD = "README.md"


def write_card(folder: Path, summary: Mapping[str, Any], library: str) -> None:
    """Write README.md of an exported model: what it is, and what its training gave away.

    `summary` holds what summary.json gets; `library` ("peft" or "transformers") is what loads the
    folder. The base model is named in the card's metadata unless it is a folder, as the hub knows
    names alone. Of private data the card says nothing: figures are of public parts.
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
        *_data(summary),
        f"- Head: {_line(summary['head'])} ({_line(summary['head_form'])})",
        f"- Strategy: {_line(summary['strategy'])}, {summary['rounds_completed']} rounds",
        *([f"- Averaging: {_line(summary['averaging'])}"] if summary.get("average_digest") else []),
        f"- Privacy: {_privacy(summary)}",
        *_threats(summary),
        f"- Noise: {_line(summary['noise_source'])}",
        *_figures(summary),
        *_made(summary),
    ]  # fmt: skip
    (folder / CARD).write_text("\n".join(lines) + "\n", encoding="utf-8")


def _data(summary: Mapping[str, Any]) -> list[str]:
    held = summary.get("data_source")
    return [f"- Data: {_line(held)}"] if held else []


def _privacy(summary: Mapping[str, Any]) -> str:
    if summary["epsilon_max"] is None:
        return "none"
    above = summary.get("epsilon_above_target")
    more = f", ABOVE its target {summary['epsilon_target']:g}" if above else ""
    return (
        f"epsilon {summary['epsilon_max']:.4f} at delta {summary['delta']:g}, "
        f"unit: one {summary['unit']} (the largest of any client){more}"
    )


def _threats(summary: Mapping[str, Any]) -> list[str]:
    """Return against whom the guarantee holds, and the second figure if there is one."""
    lines = []
    if summary.get("threat_model"):
        lines.append(f"- Threat model: {_line(summary['threat_model']).replace('_', ' ')}")
    if summary.get("epsilon_published") is not None:
        assumed = _line(summary["epsilon_published_assumed"])
        lines.append(f"- Also: epsilon {summary['epsilon_published']:.4f} {assumed}")
    return lines


def _figures(summary: Mapping[str, Any]) -> list[str]:
    """Return the figures of the model, of what was exported where that is another one."""
    lines, apart = [], any(key.startswith("exported_") for key in summary)
    names = ("accuracy", "perplexity", "token_accuracy", "macro_f1", "mcc")
    for part, prefix in (("validation", ""), ("test", "test_")):
        own = f"exported_{prefix}" if apart else prefix
        told = [
            f"{name.replace('_', ' ')} {summary[own + name]:.4f}"
            for name in names
            if summary.get(own + name) is not None
        ]
        number = summary.get(f"{prefix}examples")
        said = [m for m in GENERATED if not apart and summary.get(prefix + m.name) is not None]
        if told:
            lines.append(
                f"- On {f'{number:,} ' if number else ''}{part} examples: {', '.join(told)}"
            )
        if said:
            figures = ", ".join(f"{m.title} {summary[prefix + m.name]:.4f}" for m in said)
            lines.append(f"- On {summary[f'{prefix}answered']:,} {part} answers: {figures}")
    if apart:
        lines.append(
            f"- Not this model: the run evaluated {_line(summary['evaluated'])}, which stay with the "
            "clients; this is the part that they share"
        )
    elif summary.get("exported") == SHARED:
        lines.append(f"- What this is: {SHARED}")
    return lines


def _made(summary: Mapping[str, Any]) -> list[str]:
    lines = []
    if summary.get("versions"):
        told = ", ".join(f"{name} {version}" for name, version in summary["versions"].items())
        lines.append(f"- Versions: {_line(told)}")
    if summary.get("command"):
        lines += ["", "Made by:", "", f"    {_line(summary['command'])}"]
    return lines


def _line(text: object) -> str:
    """Return a text on one line: a name cannot add lines to the card."""
    return " ".join(str(text).split())
