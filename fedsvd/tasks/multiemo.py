"""multiemo: the sentiment of a sentence of a review, four labels, four domains."""

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsvd.tasks.archives import BIGBENCH, get
from fedsvd.tasks.bigbench import chosen, read_json
from fedsvd.tasks.write import Prepared, Row, deal_domains

DOMAINS = ("hotels", "medicine", "products", "reviews")
FILE = "bigbench/benchmark_tasks/multiemo/{}_sentence_en/task.json"
WANTED = {"test": 600, "validation": 400}  # rows of each domain


def prepare(archives: Path) -> Prepared:
    """Return English sentences with their sentiment; one that occurs in two domains counts
    in the first.
    """
    files = {domain: FILE.format(domain) for domain in DOMAINS}
    found = read_json(get(BIGBENCH, archives), files.values())
    parts = deal_domains(
        _domains({d: found[file]["examples"] for d, file in files.items()}), WANTED
    )
    facts = {
        "task": "the sentiment of a sentence: negative, neutral, ambivalent or positive",
        "source": "multiemo of bigbench 1.0.0 (Kocon et al., ICCS 2021), the English translations",
        "licence": "bigbench: Apache 2.0; that of the reviews: CC BY-NC-SA 4.0",
        "clients": "the four domains",
    }
    return Prepared(("text",), parts, facts)


def _domains(examples: Mapping[str, Sequence[Any]]) -> Iterator[dict[str, list[Row]]]:
    """Yield the rows of each domain by text, without texts of the domains before."""
    seen: set[str] = set()
    for domain, given in examples.items():
        groups: dict[str, list[Row]] = {}
        for example in given:
            text = " ".join(example["input"].split())
            if any(c.isalpha() for c in text) and text not in seen:
                groups.setdefault(text, []).append(Row((text,), chosen(example), domain))
        seen.update(groups)
        yield groups
