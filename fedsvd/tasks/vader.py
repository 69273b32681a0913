"""vader: how twenty readers felt about a sentence: negative, neutral or positive, four domains."""

import io
import tarfile
from pathlib import Path

from fedsvd.tasks.archives import VADER, get
from fedsvd.tasks.write import Prepared, Row, deal_domains

INNER = "vaderSentiment-3.3.2/additional_resources/hutto_ICWSM_2014.tar.gz"
FILES = {
    "amazon": "amazonReviewSnippets_GroundTruth.txt",
    "movies": "movieReviewSnippets_GroundTruth.txt",
    "nyt": "nytEditorialSnippets_GroundTruth.txt",
    "tweets": "tweets_GroundTruth.txt",
}
EDGE = 0.5  # of the mean rating, from -4 to 4
WANTED = {"test": 400, "validation": 300}  # rows of each domain


def prepare(archives: Path) -> Prepared:
    """Return sentences with the sign of their mean rating, neutral within 0.5 of 0.

    Sentences of one review or article (the number before the underscore) go to one part.
    """
    with tarfile.open(get(VADER, archives), "r:gz") as outer:
        packed = outer.extractfile(INNER)
        assert packed is not None, INNER
        with tarfile.open(fileobj=io.BytesIO(packed.read()), mode="r:gz") as tar:
            domains = [_groups(tar, domain, name) for domain, name in FILES.items()]
    parts = deal_domains(domains, WANTED)
    facts = {
        "task": "the sentiment of a sentence: the mean of 20 ratings, neutral from -0.5 to 0.5",
        "source": "vaderSentiment 3.3.2 (Hutto, Gilbert, ICWSM 2014)",
        "licence": "MIT",
        "clients": "the four domains",
    }
    return Prepared(("text",), parts, facts)


def _groups(tar: tarfile.TarFile, domain: str, name: str) -> dict[str, list[Row]]:
    """Return the rows of a domain by review or article."""
    file = tar.extractfile(f"hutto_ICWSM_2014/{name}")
    assert file is not None, name
    groups: dict[str, list[Row]] = {}
    for line in file.read().decode("utf-8", errors="replace").splitlines():
        key, rating, text = line.split("\t", 2)
        text = " ".join(text.split())
        if text:
            row = Row((text,), _label(float(rating)), domain)
            groups.setdefault(f"{domain} {key.partition('_')[0]}", []).append(row)
    return groups


def _label(rating: float) -> str:
    return "neutral" if abs(rating) <= EDGE else "positive" if rating > 0 else "negative"
