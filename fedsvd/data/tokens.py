"""Tokenised texts and padded batches under a token budget."""

import hashlib
import json
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from itertools import chain
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedsvd.data.kept import Kept, digest_of
from fedsvd.errors import InputError, wrong

WORTH = 1000  # texts from which on tokens are kept


@dataclass(frozen=True)
class Batch:
    """Padded inputs (n, t) int64 by the model's argument names, and labels (n,) int64.

    `counted` (n, t) says of which tokens a loss is taken, where it is of tokens.
    """

    inputs: dict[str, Tensor]
    labels: Tensor
    counted: Tensor | None = None

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Tokens:
    """Every text of a task, tokenised once and kept unpadded.

    `columns` maps "input_ids" (and "token_type_ids" if the model has them) to one int64 tensor a
    text; `lengths` (n,) counts tokens, of which `added` are the tokeniser's and not the text's.
    `counted`, where a loss is of tokens, says by row (t,) of which: every one is predicted from those
    before it, so the first never counts. `faults` say why nothing can be learnt of a row, beside what
    is `empty`; `truncated` is how many rows were cut, None where nobody counted. `choices`, where
    rows have K endings, are the texts with each of them, those of row i from K i on; its own is with
    the right one.
    """

    columns: dict[str, list[Tensor]]
    labels: Tensor
    lengths: Tensor
    pad_id: int
    added: int = 0
    counted: list[Tensor] | None = None
    faults: Mapping[int, str] = field(default_factory=dict)
    truncated: int | None = None
    choices: "Tokens | None" = None

    @property
    def empty(self) -> list[int]:
        """The rows that have no token of their own: nothing can be said about them."""
        none = self.lengths <= self.added
        if self.counted is not None:
            none = torch.tensor([not bool(c[1:].any()) for c in self.counted], dtype=torch.bool)
        return sorted({*torch.nonzero(none).flatten().tolist(), *self.faults})

    @property
    def scored(self) -> tuple["Tokens", int]:
        """The texts that evaluations look at, and how many of them each row has."""
        if self.choices is None:
            return self, 1
        return self.choices, len(self.choices.lengths) // max(1, len(self.lengths))

    def spelled(self, row: int) -> bytes:
        """Return a row's tokens as bytes that no other tokens have, for digests of an example."""
        return b"".join(
            f"|{n}|".encode() + c[row].numpy().tobytes() for n, c in self.columns.items()
        )

    def batch(self, rows: Sequence[int], device: torch.device | str = "cpu") -> Batch:
        """Return the padded batch of the given rows, in their order."""
        fill = {"input_ids": self.pad_id, "token_type_ids": 0}
        inputs = {
            name: pad_sequence(
                [column[i] for i in rows], batch_first=True, padding_value=fill[name]
            )
            for name, column in self.columns.items()
        }
        lengths = self.lengths[torch.as_tensor(rows, dtype=torch.int64)]
        inputs["attention_mask"] = (
            torch.arange(int(lengths.max()))[None, :] < lengths[:, None]
        ).to(torch.int64)
        index = torch.as_tensor(rows, dtype=torch.int64)
        moved = {name: t.to(device, non_blocking=True) for name, t in inputs.items()}
        counted = None
        if self.counted is not None:
            counted = pad_sequence([self.counted[i] for i in rows], batch_first=True).to(device)
        return Batch(moved, self.labels[index].to(device), counted)

    def microbatches(self, rows: Sequence[int], budget: int) -> Iterator[list[int]]:
        """Yield groups of rows, sorted by length, each of at most `budget` padded tokens.

        Sorting makes the padding small; a group holds at least one row. What is summed over a
        logical batch does not depend on the grouping.
        """
        group: list[int] = []
        for row in sorted(rows, key=lambda i: (int(self.lengths[i]), i)):
            if group and (len(group) + 1) * int(self.lengths[row]) > budget:
                yield group
                group = []
            group.append(row)
        if group:
            yield group


_kept: Kept[Tokens] = Kept()


def tokenise(
    tokenizer: Any, texts: Sequence[tuple[str, ...]], labels: Any, max_length: int
) -> Tokens:
    """Tokenise `texts` (tuples of one or two strings), truncating to `max_length` tokens.

    Texts of which nothing is left are `Tokens.empty`. Texts that a process has tokenised before, with
    an equal tokeniser, are not tokenised again. Raises InputError if the tokeniser cannot take the
    texts, or adds as many tokens as there is room for.
    """
    found = kept_tokens(
        tokenizer, texts, (max_length,), lambda: _tokenise(tokenizer, texts, labels, max_length)
    )
    return replace(found, labels=torch.as_tensor(labels, dtype=torch.int64))


def kept_tokens(
    tokenizer: Any, texts: Sequence[tuple[str, ...]], more: tuple[object, ...],
    make: Callable[[], Tokens],
) -> Tokens:  # fmt: skip
    """Return what `make` gives, kept for as long as tokeniser, texts and what is `more` are equal."""
    key = None
    if len(texts) >= WORTH and getattr(tokenizer, "backend_tokenizer", None) is not None:
        rules = json.loads(tokenizer.backend_tokenizer.to_str())
        for left in ("truncation", "padding"):  # by its last call; ours says its own
            rules.pop(left, None)
        told = f"{type(tokenizer).__name__} {tokenizer.init_kwargs} {json.dumps(rules)}"
        key = (hashlib.blake2b(told.encode()).digest(), *more, digest_of(texts))
    return _kept.get(key, make)


def _tokenise(
    tokenizer: Any, texts: Sequence[tuple[str, ...]], labels: Any, max_length: int
) -> Tokens:
    columns = list(zip(*texts, strict=True))
    if not columns:
        none = torch.zeros(0, dtype=torch.int64)
        return Tokens({"input_ids": []}, none, none, pad_id_of(tokenizer))
    added = int(tokenizer.num_special_tokens_to_add(pair=len(columns) == 2))
    if added >= max_length:
        raise wrong("model.max_length", max_length, f"above the {added} tokens added to every text")
    try:
        encoded = tokenizer(
            *(list(c) for c in columns), truncation=True, max_length=max_length, padding=False
        )
    except BaseException as error:
        # Tokenisers raise what they like; Rust's panics are no Exceptions.
        if not isinstance(error, Exception) and type(error).__name__ != "PanicException":
            raise
        reason = " ".join(str(error).split())[:200]
        raise InputError(
            f"model.name: its tokeniser cannot take the texts: {type(error).__name__}: {reason}"
        ) from error
    names = [n for n in ("input_ids", "token_type_ids") if n in encoded]
    if len(columns) == 1 and "token_type_ids" in names:
        names.remove("token_type_ids")  # all zero for single texts, which is the default
    lengths = [len(ids) for ids in encoded["input_ids"]]
    return Tokens(
        {name: _views(encoded[name], lengths) for name in names},
        torch.as_tensor(labels, dtype=torch.int64),
        torch.tensor(lengths, dtype=torch.int64),
        pad_id_of(tokenizer),
        added,
    )


def _views(rows: Sequence[Sequence[int]], lengths: list[int]) -> list[Tensor]:
    """Return a tensor for each row, all parts of one."""
    flat = np.fromiter(chain.from_iterable(rows), dtype=np.int64, count=sum(lengths))
    return list(torch.from_numpy(flat).split(lengths))


def pad_id_of(tokenizer: Any) -> int:
    """Return the id that pads: the padding token's, or that of the end of a text."""
    pad = tokenizer.pad_token_id
    return int(pad if pad is not None else tokenizer.eos_token_id)
