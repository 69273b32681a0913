"""squad_pairs: does this sentence answer this question? QNLI's recipe on five domains."""

import re
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

from fedsvd.tasks.squad import FACTS, deal, flat
from fedsvd.tasks.write import Prepared, Row, order

WANTED = {"test": 600, "validation": 400}  # rows of each domain
LABELS = ("not_entailment", "entailment")
END = re.compile(r"(?<=[.!?])[\"')\]]*\s+(?=[\"'(\[]?[A-Z0-9])")
WORD = re.compile(r"\w+")


def prepare(archives: Path) -> Prepared:
    """Return question and sentence, with whether the sentence answers the question.

    Every question gives one pair. A coin that follows from the question's id decides which: the
    sentence that holds the answer, or, of the sentences of the same paragraph that hold none of the
    accepted answers, the one that shares most words with the question. Questions whose paragraph has
    no such sentence give none. Whole paragraphs go to one part.
    """
    parts = deal(archives, WANTED, _pairs)
    facts = {
        "task": "whether a sentence holds the answer to a question, by QNLI's recipe",
        **FACTS,
    }
    return Prepared(("question", "sentence"), parts, facts)


def sentences(text: str) -> list[tuple[int, str]]:
    """Return (start, sentence) of a text, cut after . ! ? before a capital letter or a digit."""
    found, start = [], 0
    for gap in END.finditer(text):
        found.append((start, text[start : gap.end()].strip()))
        start = gap.end()
    found.append((start, text[start:].strip()))
    return [(at, sentence) for at, sentence in found if sentence]


def _pairs(context: str, questions: Sequence[Any], domain: str) -> Iterator[Row]:
    cut = sentences(context)
    for asked in questions:
        question = flat(asked["question"])
        answers = {answer["text"].casefold() for answer in asked["answers"]}
        if not question or not answers:
            continue
        start = asked["answers"][0]["answer_start"]
        holder = [sentence for at, sentence in cut if at <= start][-1]
        others = [s for _, s in cut if not any(answer in s.casefold() for answer in answers)]
        if asked["answers"][0]["text"].casefold() not in holder.casefold() or not others:
            continue
        words = set(WORD.findall(question.casefold()))
        rival = max(others, key=lambda s: len(words & set(WORD.findall(s.casefold()))))
        answered = order(f"squad_pairs {asked['id']}") < 0.5
        sentence = " ".join((holder if answered else rival).split())
        yield Row((question, sentence), LABELS[int(answered)], domain)
