"""squad_qa: a paragraph and a question; the answer is to be said. Five domains, SQuAD's questions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedsvd.tasks.archives import BIGBENCH, get
from fedsvd.tasks.bigbench import read_json
from fedsvd.tasks.squad_pairs import FILES, FOLDER, paragraphs
from fedsvd.tasks.write import Prepared, Row, take_groups

WANTED = {"test": 200, "validation": 200}  # rows of each domain
LONGEST = 800  # characters of a paragraph; with question and answer at most 369 tokens of SmolLM2


def prepare(archives: Path) -> Prepared:
    """Return prompts, which end with "Answer:", and completions, a blank and the first answer.

    Whole paragraphs go to one part; those of more than LONGEST characters are left out.
    """
    files = {domain: f"{FOLDER}/{file}" for domain, file in FILES.items()}
    found = read_json(get(BIGBENCH, archives), files.values())
    parts: dict[str, list[Row]] = {"train": [], "validation": [], "test": []}
    for domain, file in files.items():
        groups: dict[str, list[Row]] = {}
        for context, questions in paragraphs(found[file]):
            text = " ".join(context.split())
            rows = list(_rows(text, questions, domain)) if len(text) <= LONGEST else []
            if rows:
                groups.setdefault(text, []).extend(rows)
        for part, rows in take_groups(groups, WANTED).items():
            parts[part] += rows
    facts = {
        "task": "the answer to a question, as it stands in a paragraph",
        "source": "squad_shifts of bigbench 1.0.0 (Miller et al., ICML 2020), with SQuAD 1.1 (dev)",
        "licence": "bigbench: Apache 2.0; the questions: CC BY 4.0, SQuAD CC BY-SA 4.0",
        "clients": "the five domains",
    }
    return Prepared(("prompt", "completion"), parts, facts)


def _rows(context: str, questions: Sequence[Any], domain: str) -> Iterator[Row]:
    for asked in questions:
        question = " ".join(asked["question"].split())
        answer = " ".join(asked["answers"][0]["text"].split()) if asked["answers"] else ""
        if question and answer:
            prompt = f"{context}\n\nQuestion: {question}\nAnswer:"
            yield Row((prompt, f" {answer}"), "", domain)
