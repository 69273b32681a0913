"""squad_qa: a paragraph and a question; the answer is to be said. Five domains, SQuAD's questions."""

from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedsvd.tasks.squad import FACTS, deal, flat
from fedsvd.tasks.write import Prepared, Row

WANTED = {"test": 200, "validation": 200}  # rows of each domain
LONGEST = 800  # characters of a paragraph; with question and answer at most 369 tokens of SmolLM2


def prepare(archives: Path) -> Prepared:
    """Return prompts, which end with "Answer:", and completions, a blank and the first answer.

    Whole paragraphs go to one part; those of more than LONGEST characters are left out.
    """
    parts = deal(archives, WANTED, _rows, flat)
    facts = {"task": "the answer to a question, as it stands in a paragraph", **FACTS}
    return Prepared(("prompt", "completion"), parts, facts)


def _rows(context: str, questions: Sequence[Any], domain: str) -> Iterator[Row]:
    if len(context) > LONGEST:
        return
    for asked in questions:
        question = flat(asked["question"])
        answer = flat(asked["answers"][0]["text"]) if asked["answers"] else ""
        if question and answer:
            prompt = f"{context}\n\nQuestion: {question}\nAnswer:"
            yield Row((prompt, f" {answer}"), "", domain)
