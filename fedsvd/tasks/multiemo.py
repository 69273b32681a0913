"""multiemo: the sentiment of a sentence of a review, four labels, four domains."""

from pathlib import Path

from fedsvd.tasks.archives import BIGBENCH, get
from fedsvd.tasks.bigbench import chosen, read_json
from fedsvd.tasks.write import Prepared, Row, take_groups

DOMAINS = ("hotels", "medicine", "products", "reviews")
FILE = "bigbench/benchmark_tasks/multiemo/{}_sentence_en/task.json"
WANTED = {"test": 600, "validation": 400}  # rows of each domain


def prepare(archives: Path) -> Prepared:
    """Return English sentences with their sentiment; one that occurs in two domains counts
    in the first.
    """
    files = {domain: FILE.format(domain) for domain in DOMAINS}
    found = read_json(get(BIGBENCH, archives), files.values())
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    seen: set[str] = set()
    for domain, file in files.items():
        groups: dict[str, list[Row]] = {}
        for example in found[file]["examples"]:
            text = " ".join(example["input"].split())
            if any(c.isalpha() for c in text) and text not in seen:
                groups.setdefault(text, []).append(Row((text,), chosen(example), domain))
        seen.update(groups)
        for part, rows in take_groups(groups, WANTED).items():
            parts[part] += rows
    facts = {
        "task": "the sentiment of a sentence: negative, neutral, ambivalent or positive",
        "source": "multiemo of bigbench 1.0.0 (Kocon et al., ICCS 2021), the English translations",
        "licence": "bigbench: Apache 2.0; that of the reviews: CC BY-NC-SA 4.0",
        "clients": "the four domains",
    }
    return Prepared(("text",), parts, facts)
