"""squad_choice: which of four answers is this question's? Five domains, SQuAD's questions."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedsvd.tasks.squad import FACTS, deal, flat
from fedsvd.tasks.write import Prepared, Row, order

WANTED = {"test": 200, "validation": 200}  # rows of each domain
LONGEST = 800  # characters of a paragraph
ENDINGS = 4


def prepare(archives: Path) -> Prepared:
    """Return contexts, which end with "Answer:", lists of four endings, and which is right.

    The wrong endings are answers to other questions on the same paragraph. Their order follows from
    the question's id. Questions whose paragraph has no three others are left out, as are paragraphs
    of more than LONGEST characters. Whole paragraphs go to one part.
    """
    parts = deal(archives, WANTED, _rows, flat)
    facts = {"task": "which of four answers is that of a question on a paragraph", **FACTS}
    return Prepared(("context", "endings"), parts, facts)


def _rows(context: str, questions: Sequence[Any], domain: str) -> Iterator[Row]:
    if len(context) > LONGEST:
        return
    first = {
        asked["id"]: flat(asked["answers"][0]["text"])
        for asked in questions
        if asked["answers"] and asked["answers"][0]["text"].strip()
    }
    for asked in questions:
        question, name = flat(asked["question"]), asked["id"]
        if not question or name not in first:
            continue
        right = {flat(answer["text"]).casefold() for answer in asked["answers"]}
        others = {text.casefold(): text for text in first.values() if text.casefold() not in right}
        keys = sorted(others, key=lambda key: order(f"squad_choice {name} {key}"))
        endings = [first[name], *(others[key] for key in keys[: ENDINGS - 1])]
        if len(endings) < ENDINGS:
            continue
        endings.sort(key=lambda text: order(f"squad_choice order {name} {text}"))
        told = json.dumps(endings, ensure_ascii=False)
        prompt = f"{context}\n\nQuestion: {question}\nAnswer:"
        yield Row((prompt, told), str(endings.index(first[name])), domain)
