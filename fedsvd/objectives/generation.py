"""What a causal language model says after a prompt, the likeliest token each time; its questions."""

from collections.abc import Mapping, Sequence
from typing import Any

import torch
from torch import nn

from fedsvd.data.conversation import LEARNT, messages_of
from fedsvd.errors import InputError

Prompt = str | Sequence[Mapping[str, str]]  # a text, or the messages of a conversation
BATCH = 8  # prompts that are continued at once
MOST = 32  # tokens of an answer


def question(row: tuple[str, ...], messages: bool) -> tuple[Prompt, str] | None:
    """Return a row's prompt and the answer that is accepted; None for a row that asks nothing.

    A pair is the two. Of a conversation, with `messages`, the answer is the last turn of the
    assistant, and the prompt is all before it.
    """
    if not messages:
        return (row[0], row[1]) if len(row) == 2 else None
    told = messages_of(row[0])
    last = max(i for i, message in enumerate(told) if message["role"] == LEARNT)
    return (told[:last], told[last]["content"]) if last else None


def prompt_tokens(tokenizer: Any, prompts: Sequence[Prompt], messages: bool) -> list[list[int]]:
    """Return the tokens of each prompt, as a row of training has them before what is to be said.

    Raises InputError that names the number (from 1) of the first prompt without any.
    """
    texts = [
        tokenizer.apply_chat_template(list(prompt), tokenize=False, add_generation_prompt=True)
        if messages
        else prompt
        for prompt in prompts
    ]
    if not texts:
        return []
    found = tokenizer(texts, add_special_tokens=not messages)["input_ids"]
    end = tokenizer.eos_token_id
    if not messages:  # a tokeniser may end every text by itself
        found = [ids[:-1] if len(ids) > 1 and ids[-1] == end else ids for ids in found]
    for number, ids in enumerate(found, 1):
        if not ids:
            raise InputError(f"texts: number {number} gives no tokens")
    return [list(ids) for ids in found]


@torch.inference_mode()
def continued(
    network: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], most: int,
    batch: int = BATCH,
) -> list[str]:  # fmt: skip
    """Return what a model says after each prompt's tokens, at most `most` tokens.

    The likeliest token is taken each time, with a cache of keys and values: nothing is drawn. `batch`
    prompts of about one length are continued at once, padded on the left.
    """
    said = [""] * len(prompts)
    order = sorted(range(len(prompts)), key=lambda i: (len(prompts[i]), i))
    for start in range(0, len(order), batch):
        group = order[start : start + batch]
        texts = _continued(network, tokenizer, [prompts[i] for i in group], most)
        for i, text in zip(group, texts, strict=True):
            said[i] = text
    return said


def _continued(
    network: nn.Module, tokenizer: Any, prompts: Sequence[Sequence[int]], most: int
) -> list[str]:
    known: Any = network
    device = next(network.parameters()).device
    longest = max(map(len, prompts))
    end = tokenizer.eos_token_id
    pad = end if tokenizer.pad_token_id is None else tokenizer.pad_token_id
    ids = torch.tensor([[pad] * (longest - len(p)) + list(p) for p in prompts])
    mask = torch.tensor([[0] * (longest - len(p)) + [1] * len(p) for p in prompts])
    said = known.generate(
        input_ids=ids.to(device), attention_mask=mask.to(device), max_new_tokens=most,
        do_sample=False, use_cache=True, pad_token_id=pad, eos_token_id=end,
    )  # fmt: skip
    return [str(tokenizer.decode(row[longest:], skip_special_tokens=True)) for row in said]
