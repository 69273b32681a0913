"""Tokenised texts and padded batches under a token budget."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from fedsvd.errors import InputError, wrong


@dataclass(frozen=True)
class Batch:
    """Padded inputs (n, t) int64 by the model's argument names, and labels (n,) int64."""

    inputs: dict[str, Tensor]
    labels: Tensor

    def __len__(self) -> int:
        return len(self.labels)


@dataclass(frozen=True)
class Tokens:
    """Every text of a task, tokenised once and kept unpadded.

    `columns` maps "input_ids" (and "token_type_ids" if the model has them) to one int64 tensor a
    text; `lengths` (n,) counts tokens, of which `added` are the tokeniser's and not the text's.
    """

    columns: dict[str, list[Tensor]]
    labels: Tensor
    lengths: Tensor
    pad_id: int
    added: int = 0

    @property
    def empty(self) -> list[int]:
        """The rows that have no token of their own: nothing can be said about them."""
        return torch.nonzero(self.lengths <= self.added).flatten().tolist()

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
        return Batch(moved, self.labels[index].to(device))

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


def tokenise(
    tokenizer: Any, texts: Sequence[tuple[str, ...]], labels: Any, max_length: int
) -> Tokens:
    """Tokenise `texts` (tuples of one or two strings), truncating to `max_length` tokens.

    Texts of which nothing is left are `Tokens.empty`. Raises InputError if the tokeniser cannot take
    the texts, or adds as many tokens as there is room for.
    """
    columns = list(zip(*texts, strict=True))
    if not columns:
        none = torch.zeros(0, dtype=torch.int64)
        return Tokens({"input_ids": []}, none, none, _pad_id(tokenizer))
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
    kept = {n: [torch.tensor(ids, dtype=torch.int64) for ids in encoded[n]] for n in names}
    return Tokens(
        kept,
        torch.as_tensor(labels, dtype=torch.int64),
        torch.tensor([len(ids) for ids in encoded["input_ids"]], dtype=torch.int64),
        _pad_id(tokenizer),
        added,
    )


def _pad_id(tokenizer: Any) -> int:
    pad = tokenizer.pad_token_id
    return int(pad if pad is not None else tokenizer.eos_token_id)
