"""Tokenised texts and padded batches under a token budget."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence


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
    text; `lengths` (n,) counts tokens.
    """

    columns: dict[str, list[Tensor]]
    labels: Tensor
    lengths: Tensor
    pad_id: int

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
    """Tokenise `texts` (tuples of one or two strings), truncating to `max_length` tokens."""
    columns = list(zip(*texts, strict=True))
    encoded = tokenizer(
        *(list(c) for c in columns), truncation=True, max_length=max_length, padding=False
    )
    names = [n for n in ("input_ids", "token_type_ids") if n in encoded]
    if len(columns) == 1 and "token_type_ids" in names:
        names.remove("token_type_ids")  # all zero for single texts, which is the default
    kept = {n: [torch.tensor(ids, dtype=torch.int64) for ids in encoded[n]] for n in names}
    return Tokens(
        kept,
        torch.as_tensor(labels, dtype=torch.int64),
        torch.tensor([len(ids) for ids in encoded["input_ids"]], dtype=torch.int64),
        tokenizer.pad_token_id if tokenizer.pad_token_id is not None else tokenizer.eos_token_id,
    )
