"""A prepared data set: rows in parts, files, and a card that says what they are."""

import csv
import hashlib
import os
import shutil
import tempfile
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, final

import yaml

from fedsvd.errors import InputError, one_of

PARTS = ("train", "validation", "test")
PUBLIC = "public"  # a part that only some have


@final
@dataclass(frozen=True)
class Row:
    """One text, or two. `label` is "" where rows have none, `client` where it is nobody's."""

    text: tuple[str, ...]
    label: str
    client: str = ""


@final
@dataclass(frozen=True)
class Prepared:
    """The rows of each part, the names of their columns of text, and facts for the card."""

    columns: tuple[str, ...]
    parts: Mapping[str, list[Row]]
    facts: Mapping[str, Any]


def order(key: str) -> float:
    """Return a number in [0, 1) that follows from a text alone, for splits that never change."""
    return int.from_bytes(hashlib.sha256(key.encode()).digest()[:8], "big") / 2**64


def take_groups(groups: Mapping[str, list[Row]], wanted: Mapping[str, int]) -> dict[str, list[Row]]:
    """Deal whole groups of rows to parts, so that no group stands in two.

    Groups come in the order of their keys' hashes. Each part of `wanted` takes groups until it has
    its number of rows, and is cut there; what is cut belongs to nobody, and all later groups train. A
    text counts once with one label.
    """
    left = sorted(groups, key=order)
    found: dict[str, list[Row]] = {}
    for part, number in wanted.items():
        rows: list[Row] = []
        while left and len(rows) < number:
            rows = list(once([*rows, *groups[left.pop(0)]]))
        found[part] = rows[:number]
    found["train"] = list(once(row for key in left for row in groups[key]))
    return found


def deal_domains(
    domains: Iterable[Mapping[str, list[Row]]], wanted: Mapping[str, int]
) -> dict[str, list[Row]]:
    """Return the rows of each part: `take_groups` of every domain, one domain after another."""
    parts: dict[str, list[Row]] = {part: [] for part in PARTS}
    for groups in domains:
        for part, rows in take_groups(groups, wanted).items():
            parts[part] += rows
    return parts


def apart(name: str, prepared: Prepared, client: str) -> Prepared:
    """Return the data set `name` with one client's training rows as the public part.

    Its other rows are nobody's. So texts that anybody may see come from another source than those of
    the clients. Raises InputError for a client that does not occur, or is the only one.
    """
    parts = prepared.parts
    clients = sorted({row.client for row in parts["train"] if row.client})
    if not clients[1:]:
        raise InputError(f"--public {client}: {name} has no natural clients, or one alone")
    if client not in clients:
        raise one_of(f"--public for {name}", client, clients)
    left = {p: [row for row in rows if row.client != client] for p, rows in parts.items()}
    public = [row for row in parts["train"] if row.client == client]
    facts = {**prepared.facts, "public": f"the training rows of {client}; its others are left out"}
    if "clients" in facts:
        facts["clients"] = f"{facts['clients']}, without {client}"
    return Prepared(prepared.columns, {**left, PUBLIC: public}, facts)


def write(name: str, prepared: Prepared, folder: Path) -> Path:
    """Write FOLDER/NAME with a CSV file for each part, card.yaml and README.md; return it.

    A folder that is there already is replaced once the new one is whole.
    """
    folder.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=folder) as scratch:
        new = Path(scratch) / name
        new.mkdir()
        counts = {}
        owned = any(row.client for row in prepared.parts["train"])
        labelled = any(row.label for row in prepared.parts["train"])
        more = [*(["label"] if labelled else []), *(["client"] if owned else [])]
        for part in prepared.parts:
            rows = list(once(prepared.parts[part]))
            with (new / f"{part}.csv").open("w", encoding="utf-8", newline="") as file:
                writer = csv.writer(file, lineterminator="\n")
                writer.writerow([*prepared.columns, *more])
                writer.writerows(
                    [*row.text, *(getattr(row, column) for column in more)] for row in rows
                )
            counts[part] = {
                "rows": len(rows),
                "labels": dict(sorted(Counter(row.label for row in rows if row.label).items())),
                "clients": dict(sorted(Counter(row.client for row in rows if row.client).items())),
                "sha256": hashlib.sha256((new / f"{part}.csv").read_bytes()).hexdigest(),
            }
        card = {"name": name, **prepared.facts, "parts": counts}
        (new / "card.yaml").write_text(yaml.safe_dump(card, sort_keys=False), encoding="utf-8")
        (new / "README.md").write_text(_page(card), encoding="utf-8")
        return replace(new, folder / name)


def save(model: Any, tokenizer: Any, folder: Path) -> None:
    """Write a model and its tokeniser in Transformers' form, without its progress bar."""
    from transformers.utils import logging

    shown = logging.is_progress_bar_enabled()
    logging.disable_progress_bar()
    try:
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)
    finally:
        if shown:
            logging.enable_progress_bar()


def replace(new: Path, old: Path) -> Path:
    """Put a folder in another's place, whose files are lost only then; return the place."""
    if old.exists():
        aside = new.with_name(f"{new.name}.old")
        os.replace(old, aside)
        os.replace(new, old)
        shutil.rmtree(aside)
    else:
        os.replace(new, old)
    return old


def once(rows: Iterable[Row]) -> Iterator[Row]:
    """Yield rows whose text and label did not occur before."""
    seen = set()
    for row in rows:
        if (row.text, row.label) not in seen:
            seen.add((row.text, row.label))
            yield row


def _page(card: Mapping[str, Any]) -> str:
    lines = [f"# {card['name']}", ""]
    lines += [f"{key}: {value}" for key, value in card.items() if key not in ("name", "parts")]
    lines += ["", "| part | rows | labels | clients | SHA-256 |", "|---|---|---|---|---|"]
    for part, facts in card["parts"].items():
        told = [
            ", ".join(f"{k} {n}" for k, n in facts[key].items()) for key in ("labels", "clients")
        ]
        lines.append(f"| {part} | {facts['rows']} | {told[0]} | {told[1]} | {facts['sha256']} |")
    return "\n".join(lines) + "\n"
