"""Which rows clients hold, which the server has, which are public: for each row by its own coins."""

from collections.abc import Collection, Mapping, Sequence

import numpy as np

from fedsvd.data.coins import coins, taken
from fedsvd.errors import InputError, wrong
from fedsvd.randomness import Purpose
from fedsvd.settings import DataSettings


def split(
    parts: Mapping[str, np.ndarray], texts: Sequence[tuple[str, ...]], settings: DataSettings,
    seed: int, source: str,
) -> dict[str, np.ndarray]:  # fmt: skip
    """Return disjoint, sorted index arrays into `texts` for train, validation, test and public.

    `parts` are the rows as the source has them: "all", or some of train, validation, test; and
    "public". Of "all", or of a train part without validation, each row goes to validation or test
    with the probabilities `data.validation` and `data.test`. Then, of what is to train, each row is
    public with probability data.public / data.public_size, unless the source has public rows; and
    each remaining one is kept with probability data.limit / data.public_size; of validation and test
    with that of data.limit_evaluation, if given, to their public size. Raises InputError if
    `data.public` cannot be had.
    """
    pool = parts.get("all", parts.get("train", np.zeros(0, dtype=np.int64)))
    shares = _shares(parts, settings)
    drawn = np.ones(len(pool))
    if shares:  # otherwise the source says it all
        drawn = coins([texts[i] for i in pool], seed, Purpose.SPLIT)
    found: dict[str, np.ndarray] = {}
    start = 0.0
    for part, share in shares.items():
        found[part] = pool[(start <= drawn) & (drawn < start + share)]
        start += share
    train = pool[drawn >= start]
    for part in ("validation", "test"):
        rows = parts.get(part, found.get(part, pool[:0]))
        whole = _public_size(part, parts, settings)
        found[part] = _limited(rows, texts, settings.held_out, seed, whole)
    if settings.public:
        found["public"], train = _public(parts, train, texts, settings, seed, source)
    found["train"] = _limited(train, texts, settings.limit, seed, settings.public_size)
    return {part: np.sort(rows) for part, rows in found.items()}


def subset(
    rows: np.ndarray, texts: Sequence[tuple[str, ...]], given: Collection[str],
    settings: DataSettings, number: int | None, seed: int,
) -> np.ndarray:  # fmt: skip
    """Return about `number` of the `rows` of validation, each by a coin of its own; None: all.

    `given` names the parts that the source has. A part that was drawn is taken at a rate from public
    numbers, so that a row more or less moves no other one; one that the source gives is capped. All
    rows where none was drawn.
    """
    values = coins([texts[i] for i in rows], seed, Purpose.EVALUATION)
    kept = taken(values, number, _held_size("validation", given, settings))
    return rows[kept] if kept.any() else rows


def questions(
    rows: np.ndarray, texts: Sequence[tuple[str, ...]], given: Collection[str],
    settings: DataSettings, number: int | None, seed: int, part: str,
) -> np.ndarray:  # fmt: skip
    """Return about `number` of the `rows` of validation or test (`part`), as `subset` takes them.

    Their coins are others than those of `subset`. Where none was drawn it is the row of the smallest
    coin: an answer costs too much for all of them.
    """
    values = coins([texts[i] for i in rows], seed, Purpose.EVALUATION, "answers")
    kept = taken(values, number, _held_size(part, given, settings))
    return rows[kept] if kept.any() else rows[np.argsort(values, kind="stable")[:1]]


def _shares(given: Collection[str], settings: DataSettings) -> dict[str, float]:
    """Return the probabilities of the parts that are drawn, as the source does not give them."""
    if "all" in given:
        return {"validation": settings.validation, "test": settings.test}
    return {} if "validation" in given else {"validation": settings.validation}


def _public_size(part: str, given: Collection[str], settings: DataSettings) -> float | None:
    """Return about how many rows a drawn part publicly has before `data.limit`, None if unknown.

    What the source itself gives the server is no private row: a cap there may be exact.
    """
    shares = _shares(given, settings)
    if settings.public_size is None or part not in shares:
        return None
    return settings.public_size * shares[part] / (1 - sum(shares.values()))


def _held_size(part: str, given: Collection[str], settings: DataSettings) -> float | None:
    """Return about how many rows a drawn part publicly has after `data.limit`, None if unknown."""
    size = _public_size(part, given, settings)
    if size is None or settings.held_out is None:
        return size
    return min(size, settings.held_out)


def _limited(
    rows: np.ndarray, texts: Sequence[tuple[str, ...]], limit: int | None, seed: int,
    size: float | None,
) -> np.ndarray:  # fmt: skip
    """Return about `limit` of the rows, of which there are publicly `size`; None: all."""
    if limit is None:
        return rows
    values = coins([texts[i] for i in rows], seed, Purpose.SPLIT, "limit")
    return rows[taken(values, limit, size)]


def _public(
    parts: Mapping[str, np.ndarray], train: np.ndarray, texts: Sequence[tuple[str, ...]],
    settings: DataSettings, seed: int, source: str,
) -> tuple[np.ndarray, np.ndarray]:  # fmt: skip
    """Return the public rows and what is left to train on."""
    number, size = settings.public, settings.public_size
    given = parts.get("public")
    rows = train if given is None else given
    values = coins([texts[i] for i in rows], seed, Purpose.SPLIT, "public")
    if given is not None:
        if number > len(given):
            raise wrong("data.public", number, f"at most {len(given)}, the public rows of {source}")
        return given[taken(values, number, None)], train
    most = len(train) if size is None else size
    if number >= most:
        raise wrong("data.public", number, f"below {most}, the training rows of {source}")
    chosen = taken(values, number, size)
    if not chosen.any():
        raise InputError(
            f"data.public: at the rate {number} / {most} none of the training rows of {source} was "
            "drawn; ask for more, or give the texts in a file public.csv beside the others"
        )
    return train[chosen], train[~chosen]
