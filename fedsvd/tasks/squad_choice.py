"""squad_choice: which of four answers is this question's? Five domains, SQuAD's questions."""

import json
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedsvd.tasks.archives import BIGBENCH, get
from fedsvd.tasks.bigbench import read_json
from fedsvd.tasks.squad_pairs import FILES, FOLDER, paragraphs
from fedsvd.tasks.write import Prepared, Row, deal_domains, order

WANTED = {"test": 200, "validation": 200}  # rows of each domain
LONGEST = 800  # characters of a paragraph
ENDINGS = 4


def prepare(archives: Path) -> Prepared:
    """Return contexts, which end with "Answer:", lists of four endings, and which is right.

    The wrong endings are answers to other questions on the same paragraph. Their order follows from
    the question's id. Questions whose paragraph has no three others are left out, as are paragraphs
    of more than LONGEST characters. Whole paragraphs go to one part.
    """
    files = {domain: f"{FOLDER}/{file}" for domain, file in FILES.items()}
    found = read_json(get(BIGBENCH, archives), files.values())
    parts = deal_domains((_groups(found[file], domain) for domain, file in files.items()), WANTED)
    facts = {
        "task": "which of four answers is that of a question on a paragraph",
        "source": "squad_shifts of bigbench 1.0.0 (Miller et al., ICML 2020), with SQuAD 1.1 (dev)",
        "licence": "bigbench: Apache 2.0; the questions: CC BY 4.0, SQuAD CC BY-SA 4.0",
        "clients": "the five domains",
    }
    return Prepared(("context", "endings"), parts, facts)


def _groups(data: Any, domain: str) -> dict[str, list[Row]]:
    """Return the rows of a domain by paragraph."""
    groups: dict[str, list[Row]] = {}
    for context, questions in paragraphs(data):
        text = " ".join(context.split())
        rows = list(_rows(text, questions, domain)) if len(text) <= LONGEST else []
        if rows:
            groups.setdefault(text, []).extend(rows)
    return groups


def _rows(context: str, questions: Sequence[Any], domain: str) -> Iterator[Row]:
    first = {
        asked["id"]: " ".join(asked["answers"][0]["text"].split())
        for asked in questions
        if asked["answers"] and asked["answers"][0]["text"].strip()
    }
    for asked in questions:
        question, name = " ".join(asked["question"].split()), asked["id"]
        if not question or name not in first:
            continue
        right = {" ".join(answer["text"].split()).casefold() for answer in asked["answers"]}
        others = {text.casefold(): text for text in first.values() if text.casefold() not in right}
        keys = sorted(others, key=lambda key: order(f"squad_choice {name} {key}"))
        endings = [first[name], *(others[key] for key in keys[: ENDINGS - 1])]
        if len(endings) < ENDINGS:
            continue
        endings.sort(key=lambda text: order(f"squad_choice order {name} {text}"))
        told = json.dumps(endings, ensure_ascii=False)
        prompt = f"{context}\n\nQuestion: {question}\nAnswer:"
        yield Row((prompt, told), str(endings.index(first[name])), domain)
