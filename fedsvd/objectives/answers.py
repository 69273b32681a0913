"""How good generated answers are: exact match and F1, as SQuAD counts them.

Source: Rajpurkar et al., EMNLP 2016 (arXiv 1606.05250), section 6.1. Texts are compared without case,
punctuation, the articles a, an, the, and with single blanks. Of several accepted answers the best
counts.
"""

import re
import string
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from statistics import fmean
from typing import final

from fedsvd.errors import InputError

ARTICLE = re.compile(r"\b(?:a|an|the)\b")
PUNCTUATION = str.maketrans("", "", string.punctuation)


@final
@dataclass(frozen=True)
class Answers:
    """What a model answered, and how good it is.

    Attributes:
        exact_match: the share of the answers that are an accepted one.
        f1: the mean over the answers of the harmonic mean of precision and recall of their words.
        said: the answers themselves.
    """

    exact_match: float
    f1: float
    said: tuple[str, ...]


def judged(said: Sequence[str], accepted: Sequence[str | Sequence[str]]) -> Answers:
    """Return the figures of answers, each beside what is accepted in its place: a text, or several.

    Raises:
        InputError: there is no answer, or nothing is accepted in the place of one.
    """
    if not said:
        raise InputError("answers: there is no row")
    exact, shared = zip(*marks(said, accepted), strict=True)
    return Answers(fmean(exact), fmean(shared), tuple(said))


def marks(
    said: Sequence[str], accepted: Sequence[str | Sequence[str]]
) -> list[tuple[float, float]]:
    """Return exact match and F1 of each answer, see `judged`."""
    found = []
    for number, (text, right) in enumerate(zip(said, accepted, strict=True), 1):
        known = [right] if isinstance(right, str) else list(right)
        if not known:
            raise InputError(f"answers: number {number} has no accepted answer")
        exact = max(float(plain(text) == plain(one)) for one in known)
        found.append((exact, max(overlap(text, one) for one in known)))
    return found


def plain(text: str) -> str:
    """Return a text as it is compared."""
    return " ".join(ARTICLE.sub(" ", text.lower().translate(PUNCTUATION)).split())


def overlap(said: str, right: str) -> float:
    """Return the F1 of the words of an answer; two without words are equal, one is not."""
    one, other = plain(said).split(), plain(right).split()
    if not one or not other:
        return float(one == other)
    common = sum((Counter(one) & Counter(other)).values())
    return 2 * common / (len(one) + len(other))
