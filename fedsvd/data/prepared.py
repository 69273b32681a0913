"""The data sets and models that `python -m fedsvd.tasks` makes, for messages of what is lacking."""

from pathlib import PurePath

TASKS = ("multiemo", "newsgroups", "squad_choice", "squad_pairs", "squad_qa", "vader", "vitaminc")
MODELS = ("bert_tiny", "minilm_l3", "smollm2")


def hint(place: str) -> str:
    """Return how a folder that does not exist is made, "" if nothing is known of it."""
    name = PurePath(place).name
    return f"; python -m fedsvd.tasks {name} makes it" if name in (*TASKS, *MODELS) else ""
