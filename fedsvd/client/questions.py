"""Which questions a model answers at the end of a run, and whether it has room for the answers."""

from typing import Any

import torch
from torch import nn

from fedsvd.data.splits import questions
from fedsvd.data.task import Task
from fedsvd.data.tokens import Tokens, pad_id_of
from fedsvd.errors import wrong
from fedsvd.models.usable import taken
from fedsvd.objectives.generation import prompt_tokens, question
from fedsvd.settings import Settings

PARTS = ("validation", "test")
Asked = dict[int, tuple[list[int], str]]  # by row: the tokens of its prompt, the accepted answer


def asked(settings: Settings, task: Task, tokenizer: Any, part: str) -> Asked:
    """Return the questions of a part that are answered: about `recorder.answers`, the same always.

    Left out are rows that ask nothing, and those whose prompt alone has `model.max_length` tokens.
    """
    rows: Any = {"validation": task.validation, "test": task.test}[part]
    number, messages = settings.recorder.answers, settings.data.messages is not None
    if number == 0 or not len(rows):
        return {}
    drawn = questions(rows, task.texts, task.given, settings.data, number, settings.seed, part)
    told = {row: question(task.texts[row], messages) for row in drawn.tolist()}
    known = {row: found for row, found in told.items() if found is not None}
    tokens = prompt_tokens(tokenizer, [prompt for prompt, _ in known.values()], messages)
    return {
        row: (ids, accepted)
        for (row, (_, accepted)), ids in zip(known.items(), tokens, strict=True)
        if len(ids) < settings.model.max_length
    }


def check_room(settings: Settings, task: Task, tokenizer: Any, backbone: nn.Module) -> None:
    """Raise InputError unless the backbone, on the CPU, takes every question with an answer.

    A backbone that states enough places is not run.
    """
    parts = PARTS if settings.recorder.test else PARTS[:1]
    found = [ids for part in parts for ids, _ in asked(settings, task, tokenizer, part).values()]
    if not found:
        return
    most, longest = settings.recorder.answer_tokens, max(found, key=len)
    length = len(longest) + most - 1  # the last token of an answer is not read
    config: Any = backbone.config
    if length <= (getattr(config, "max_position_embeddings", None) or 0):
        return
    ids = torch.tensor(longest * (1 + length // len(longest)))[:length]
    one, name = torch.tensor([length]), settings.model.name
    room = taken(name, backbone, Tokens({"input_ids": [ids]}, one, one, pad_id_of(tokenizer)))
    if room < length:
        raise wrong(
            "recorder.answer_tokens", most,
            f"at most {room - len(longest) + 1}: {name!r} takes {room} tokens, and the longest "
            f"question has {len(longest)}",
        )  # fmt: skip
