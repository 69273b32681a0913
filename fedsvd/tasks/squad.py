"""The questions of squad_shifts in bigbench, SQuAD's and four more domains: read and dealt out."""

from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

from fedsvd.tasks.archives import BIGBENCH, get
from fedsvd.tasks.bigbench import read_json
from fedsvd.tasks.write import Row, deal_domains

FOLDER = "bigbench/benchmark_tasks/squad_shifts"
FILES = {
    "squad": "squaddev_v1.1.json",
    "new_wiki": "new_wiki_v1.0.json",
    "nyt": "nyt_v1.0.json",
    "reddit": "reddit_v1.0.json",
    "amazon": "amazon_reviews_v1.0.json",
}
FACTS = {
    "source": "squad_shifts of bigbench 1.0.0 (Miller et al., ICML 2020), with SQuAD 1.1 (dev)",
    "licence": "bigbench: Apache 2.0; the questions: CC BY 4.0, SQuAD CC BY-SA 4.0",
    "clients": "the five domains",
}

RowsOf = Callable[[str, Sequence[Any], str], Iterable[Row]]


def deal(
    archives: Path, wanted: Mapping[str, int], rows_of: RowsOf, text_of: Callable[[str], str] = str
) -> dict[str, list[Row]]:
    """Return the rows of each part, `wanted` of each domain; whole paragraphs go to one part.

    `rows_of(context, questions, domain)` gives the rows of a paragraph, `text_of` its text first.
    """
    found = read_json(get(BIGBENCH, archives), [f"{FOLDER}/{file}" for file in FILES.values()])
    domains = []
    for domain, file in FILES.items():
        groups: dict[str, list[Row]] = {}
        for context, questions in paragraphs(found[f"{FOLDER}/{file}"]):
            text = text_of(context)
            rows = list(rows_of(text, questions, domain))
            if rows:
                groups.setdefault(text, []).extend(rows)
        domains.append(groups)
    return deal_domains(domains, wanted)


def paragraphs(data: Any) -> Iterator[tuple[str, Sequence[Any]]]:
    """Yield (context, questions) of every paragraph of a file in SQuAD's form."""
    for article in data["data"]:
        for paragraph in article["paragraphs"]:
            yield paragraph["context"], paragraph["qas"]


def flat(text: str) -> str:
    """Return a text on one line, with single blanks."""
    return " ".join(text.split())
