"""Causal language modelling: the next token of what is to be said; loss, perplexity, accuracy."""

from dataclasses import replace
from typing import Any, ClassVar, final

from torch import Tensor

from fedsvd.data.task import Task
from fedsvd.data.tokens import Tokens, kept_tokens
from fedsvd.errors import InputError, wrong
from fedsvd.objectives.language import LanguageObjective, check_frozen_output
from fedsvd.objectives.metric import GENERATED, PERPLEXITY, TOKEN_ACCURACY, Metric
from fedsvd.objectives.said import encode
from fedsvd.settings import DataSettings, Settings


@final
class Causal(LanguageObjective):
    """Every counted token from those before it. Outputs: sum of losses, right ones, tokens (n, 3)."""

    name: ClassVar[str] = "causal"
    metrics: ClassVar[tuple[Metric, ...]] = (PERPLEXITY, TOKEN_ACCURACY)
    generated: ClassVar[tuple[Metric, ...]] = GENERATED
    unusable: ClassVar[str] = "nothing that is to be said gives a token"

    def check(self, settings: Settings) -> None:
        """Refuse what needs labels, a head that trains, or clients that this version cannot serve."""
        check_frozen_output(settings, "rows have no labels")
        if settings.partition.name in ("published", "shards"):
            raise wrong(
                "partition", settings.partition.name,
                "iid, quantity, dirichlet, natural, files or flower with task=causal: rows have no "
                "labels to deal them by",
            )  # fmt: skip
        if settings.data.endings is not None:
            raise wrong("data.endings", settings.data.endings, "used with task=choice")
        if settings.data.messages is None and not settings.data.text:
            raise wrong("data.text", [], "a column of texts, or prompt and completion")
        asks = settings.data.messages is not None or len(settings.data.text) == 2
        if settings.recorder.answers != 0 and not asks:
            raise wrong(
                "recorder.answers", settings.recorder.answers,
                "0 with data.text of one column: a plain text asks nothing",
            )  # fmt: skip

    def columns(self, data: DataSettings) -> DataSettings:
        """Return the settings without a label, and with the conversations as the texts."""
        text = data.text if data.messages is None else (data.messages,)
        return replace(data, text=text, label=None, labels=None, label_texts=None)

    def tokens(self, settings: Settings, task: Task, tokenizer: Any) -> Tokens:
        """Return the task's rows as tokens; those that are to be said are counted."""
        messages, most = settings.data.messages is not None, settings.model.max_length
        name = settings.model.name
        if messages and not tokenizer.chat_template:
            raise InputError(
                f"{task.rows[0] if task.rows else task.source}: a conversation, and the tokeniser of "
                f"{name!r} has no chat template (model.name, data.messages); take a model that was "
                "tuned on conversations, or data.text=[prompt,completion]"
            )
        return kept_tokens(
            tokenizer, task.texts, ("causal", messages, most, str(tokenizer.chat_template)),
            lambda: encode(tokenizer, task.texts, messages, most, name),
        )  # fmt: skip

    def width(self, classes: int) -> int:
        """Return 3."""
        return 3

    def measure(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the mean of the examples' losses, exp of the mean over all tokens, right ones.

        So `loss` weighs examples alike, as training does; `perplexity` and `token_accuracy` weigh
        tokens alike.
        """
        total, right, count = outputs.double().unbind(dim=1)
        return {
            "perplexity": float((total.sum() / count.sum()).exp()),
            "loss": float((total / count).mean()),
            "token_accuracy": float(right.sum() / count.sum()),
        }
