"""Which seeds are reported: the first of suite.yaml's, or others that the command line names."""

from argparse import ArgumentTypeError
from collections.abc import Iterable, Sequence
from typing import Any

from experiments.suite.records import Runs

Wish = int | tuple[int, ...] | None


def wish(text: str) -> Wish:
    """Return the value of --seeds: how many of the reported seeds, or a tuple of seeds.

    Raises ArgumentTypeError, which names what was given, for anything else.
    """
    words = [word.strip() for word in text.removesuffix(",").split(",")]
    if not all(word.isdecimal() and len(word) < 10 for word in words):
        raise ArgumentTypeError(f"{text!r} is neither a number of seeds nor a list as 20,21,22")
    if "," in text:
        return tuple(dict.fromkeys(map(int, words)))
    if int(text) == 0:
        raise ArgumentTypeError("at least 1 seed is needed; the seed 0 alone is 0,")
    return int(text)


def trouble(suite: dict[str, Any], wished: Wish, models: Iterable[str]) -> str | None:
    """Return why these seeds cannot be reported, None if they can."""
    if isinstance(wished, tuple):
        seen = set(wished) & set(suite["search"]["seeds"])
        return f"{min(seen)} is a seed of the search, which is never reported" if seen else None
    for model in sorted(models):
        known = len(suite["models"][model]["seeds"])
        if wished is not None and wished > known:
            return f"{wished} is more than the {known} reported seeds of {model}; name them: 20,21"
    return None


def seeds_of(suite: dict[str, Any], wished: Wish, model: str) -> Sequence[int]:
    """Return the seeds that are reported of a model."""
    if isinstance(wished, tuple):
        return wished
    known: list[int] = suite["models"][model]["seeds"]
    return known[:wished]


def only(suite: dict[str, Any], wished: Wish, runs: Runs) -> Runs:
    """Return the records less the reports of other seeds; all if there is no wish."""
    if wished is None:
        return runs
    return {
        key: line
        for key, line in runs.items()
        if key[1] != "report" or key[4] in seeds_of(suite, wished, key[0].model)
    }
