"""Rows of a causal language model as tokens: what is given, and what is to be said."""

from collections.abc import Iterator, Sequence
from typing import Any

import numpy as np
import torch

from fedsvd.data.conversation import LEARNT, messages_of
from fedsvd.data.tokens import Tokens, pad_id_of
from fedsvd.errors import InputError

TOGETHER = 1000  # rows that the tokeniser gets at once
Spans = list[tuple[int, int]]  # (first character, one behind the last) of what is to be said


def encode(
    tokenizer: Any, rows: Sequence[tuple[str, ...]], messages: bool, max_length: int, name: str
) -> Tokens:
    """Return rows as tokens, with which of them are `counted`: see `encoded`."""
    return encoded(tokenizer, rows, max_length, name, messages=messages)


def encoded(
    tokenizer: Any, rows: Sequence[tuple[str, ...]], max_length: int, name: str, *,
    messages: bool = False, ends: bool = True,
) -> Tokens:  # fmt: skip
    """Return rows as tokens, with which of them are `counted`: those that are to be said.

    A row is a plain text, of which every token counts; a prompt and its completion, of which the
    completion's count and, if it `ends`, an end of text after it, where the tokeniser has one; or,
    with `messages`, a conversation in the tokeniser's chat template, of which the turns of the
    assistant count. A row is tokenised as one text: a token counts if it ends within what is to be
    said. Rows are cut after `max_length` tokens; `Tokens.truncated` says how many are. `name` is the
    model's. Raises InputError for a tokeniser that cannot say where its tokens stand.
    """
    if not getattr(tokenizer, "is_fast", False):
        raise InputError(f"model.name: the tokeniser of {name!r} does not say where tokens stand")
    ids: list[np.ndarray] = []
    counted: list[np.ndarray] = []
    faults: dict[int, str] = {}
    truncated = 0
    for start in range(0, len(rows), TOGETHER):
        told = list(_texts(tokenizer, rows[start : start + TOGETHER], messages, start, faults))
        for i, (found, said) in enumerate(
            _tokens(tokenizer, told, ends and not messages, messages), start
        ):
            if i not in faults and not said[1:].any():
                faults[i] = "nothing that is to be said gives a token"
            elif i not in faults and not said[1:max_length].any():
                faults[i] = (
                    f"what is to be said begins after {int(np.argmax(said))} tokens, and "
                    f"model.max_length={max_length} cuts it off"
                )
            truncated += len(found) > max_length
            ids.append(found[:max_length])
            counted.append(said[:max_length])
    lengths = [len(found) for found in ids]
    flat = np.concatenate(ids) if ids else np.zeros(0, dtype=np.int64)
    said = np.concatenate(counted) if counted else np.zeros(0, dtype=np.bool_)
    return Tokens(
        {"input_ids": list(torch.from_numpy(flat).split(lengths))},
        torch.zeros(len(rows), dtype=torch.int64),
        torch.tensor(lengths, dtype=torch.int64),
        pad_id_of(tokenizer),
        counted=list(torch.from_numpy(said).split(lengths)),
        faults=faults,
        truncated=truncated,
    )


def _texts(
    tokenizer: Any, rows: Sequence[tuple[str, ...]], messages: bool, start: int,
    faults: dict[int, str],
) -> Iterator[tuple[str, Spans]]:  # fmt: skip
    """Yield the text of each row, with where what is to be said stands in it."""
    for number, row in enumerate(rows, start):
        if messages:
            try:
                yield rendered(tokenizer, messages_of(row[0]))
            except Exception as error:  # templates raise what they like
                said = " ".join(str(error).split())[:200]
                faults[number] = f"the tokeniser's chat template refuses its messages: {said}"
                yield "", []
        else:
            text = "".join(row)
            yield text, [(0 if len(row) == 1 else len(row[0]), len(text))]


def rendered(tokenizer: Any, messages: Sequence[dict[str, str]]) -> tuple[str, Spans]:
    """Return a conversation in the chat template, and where its turns of the assistant stand.

    A turn begins where the template would let the model begin. What follows the last one is left
    out. Raises ValueError if an earlier part of the conversation is not the beginning of a later one,
    and whatever the template raises.
    """

    def text_of(part: Sequence[dict[str, str]], asks: bool) -> str:
        return str(
            tokenizer.apply_chat_template(list(part), tokenize=False, add_generation_prompt=asks)
        )

    turns = [i for i, message in enumerate(messages) if message["role"] == LEARNT]
    whole = text_of(messages[: turns[-1] + 1], asks=False)
    spans = []
    for i in turns:
        before = text_of(messages[:i], asks=True) if i else ""
        upto = text_of(messages[: i + 1], asks=False)
        if not whole.startswith(upto) or not upto.startswith(before):
            raise ValueError("it writes earlier turns in another way once others follow")
        spans.append((len(before), len(upto)))
    return whole, spans


def _tokens(
    tokenizer: Any, told: Sequence[tuple[str, Spans]], ends: bool, messages: bool
) -> Iterator[tuple[np.ndarray, np.ndarray]]:
    """Yield (ids (t,) int64, counted (t,) bool) of each text, with an end after a completion."""
    encoded = tokenizer(
        [text for text, _ in told], add_special_tokens=not messages, truncation=False,
        padding=False, return_offsets_mapping=True,
    )  # fmt: skip
    end = tokenizer.eos_token_id
    for i, (_, spans) in enumerate(told):
        found = np.asarray(encoded["input_ids"][i], dtype=np.int64)
        places = np.asarray(encoded["offset_mapping"][i], dtype=np.int64).reshape(-1, 2)
        said = np.zeros(len(found), dtype=np.bool_)
        for first, last in spans:
            said |= (first < places[:, 1]) & (places[:, 1] <= last)
        completion = bool(spans) and not messages and spans[0][0] > 0
        if completion and not ends and len(found) and found[-1] == end and not said[-1]:
            found, said = found[:-1], said[:-1]  # a tokeniser may end every text by itself
        if completion and ends and end is not None:
            # A tokeniser that ends every text by itself has said it already.
            if not len(found) or found[-1] != end:
                found, said = np.append(found, end), np.append(said, False)
            said[-1] = bool(said.any())
        yield found, said
