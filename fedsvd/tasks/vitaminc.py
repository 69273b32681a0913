"""vitaminc: does a passage support a claim? Three labels, split by Wikipedia page."""

from pathlib import Path

from fedsvd.tasks.archives import BIGBENCH, get
from fedsvd.tasks.bigbench import chosen, read_json
from fedsvd.tasks.write import Prepared, Row, order, take_groups

FILE = "bigbench/benchmark_tasks/vitaminc_fact_verification/task.json"
LABELS = {"True": "supports", "False": "refutes", "Neither": "not_enough"}
WANTED = {"test": 3000, "validation": 2000}
CLIENTS = 6


def prepare(archives: Path) -> Prepared:
    """Return claim and passage, with what the passage says of the claim.

    Whole pages go to one part, and to one of six clients, by a hash of the page's title.
    """
    groups: dict[str, list[Row]] = {}
    for example in read_json(get(BIGBENCH, archives), [FILE])[FILE]["examples"]:
        passage, _, claim = example["input"].rpartition("\nClaim: ")
        page = passage.partition(":")[0]
        passage, claim = " ".join(passage.split()), " ".join(claim.split())
        if passage and claim:
            client = f"pages_{int(CLIENTS * order(f'vitaminc client {page}'))}"
            row = Row((claim, passage), LABELS[chosen(example)], client)
            groups.setdefault(page, []).append(row)
    facts = {
        "task": "whether a passage supports a claim, refutes it, or says too little",
        "source": "vitaminc_fact_verification of bigbench 1.0.0 (Schuster et al., NAACL 2021)",
        "licence": "bigbench: Apache 2.0; the passages are Wikipedia's, CC BY-SA 3.0",
        "clients": "six groups of pages",
    }
    return Prepared(("claim", "passage"), take_groups(groups, WANTED), facts)
