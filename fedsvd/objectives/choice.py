"""Choice among endings, HellaSwag's way: the right one is learnt, the likeliest one is chosen."""

from dataclasses import replace
from typing import Any, ClassVar, final

import torch
from torch import Tensor

from fedsvd.data.endings import endings_of, joined
from fedsvd.data.task import Task
from fedsvd.data.tokens import Tokens, kept_tokens
from fedsvd.errors import wrong
from fedsvd.objectives.language import LanguageObjective, check_frozen_output
from fedsvd.objectives.metric import ACCURACY, PERPLEXITY, Metric
from fedsvd.objectives.said import encoded
from fedsvd.settings import DataSettings, Settings


@final
class Choice(LanguageObjective):
    """The tokens of the right ending from the context. Outputs: those of every ending (n, 3 K).

    The ending with the largest mean of log p over its tokens is chosen (Zellers et al., ACL 2019,
    arXiv 1905.07830, whose scores are such means).
    """

    name: ClassVar[str] = "choice"
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY, PERPLEXITY)
    unusable: ClassVar[str] = "an ending gives no token"

    def check(self, settings: Settings) -> None:
        """Refuse data without endings or labels, and what `check_frozen_output` does."""
        check_frozen_output(settings, "a wrong ending is no label of another class")
        data = settings.data
        if data.endings is None:
            raise wrong("data.endings", None, "a column of lists of endings with task=choice")
        if data.label is None:
            raise wrong("data.label", None, "the column that says which ending is right")
        if len(data.text) != 1 or data.messages is not None:
            key, value = ("data.text", list(data.text))
            if data.messages is not None:
                key, value = "data.messages", [data.messages]
            raise wrong(key, value, "with task=choice data.text alone: the column of the context")

    def columns(self, data: DataSettings) -> DataSettings:
        """Return the settings with the endings as the second text."""
        assert data.endings is not None
        return replace(data, text=(*data.text, data.endings), label_texts=None)

    def tokens(self, settings: Settings, task: Task, tokenizer: Any) -> Tokens:
        """Return every row with its right ending as tokens, and all endings as its `choices`."""
        most, name, number = settings.model.max_length, settings.model.name, task.classes
        pairs = [
            (context, joined(context, ending))
            for context, endings in task.texts
            for ending in endings_of(endings)
        ]
        every = kept_tokens(
            tokenizer, task.texts, ("choice", most),
            lambda: encoded(tokenizer, pairs, most, name, ends=False),
        )  # fmt: skip
        labels = torch.as_tensor(task.labels, dtype=torch.int64)
        right = (torch.arange(len(labels)) * number + labels).tolist()
        assert every.counted is not None
        faults = {
            place // number: f"ending {place % number}: {why}"
            for place, why in sorted(every.faults.items(), reverse=True)
        }
        return Tokens(
            {n: [column[i] for i in right] for n, column in every.columns.items()},
            labels,
            every.lengths[torch.tensor(right, dtype=torch.int64)],
            every.pad_id,
            counted=[every.counted[i] for i in right],
            faults=faults,
            truncated=every.truncated,
            choices=every,
        )

    def width(self, classes: int) -> int:
        """Return 3 K."""
        return 3 * classes

    def measure(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Return how often the right ending was chosen; loss and perplexity of the right endings."""
        total, _, count = outputs.double().view(len(labels), -1, 3).unbind(dim=2)
        at = labels.unsqueeze(1)
        own, tokens = total.gather(1, at), count.gather(1, at)
        chosen = (total / count).argmin(dim=1)
        return {
            "accuracy": float((chosen == labels).double().mean()),
            "loss": float((own / tokens).mean()),
            "perplexity": float((own.sum() / tokens.sum()).exp()),
        }
