"""Causal language modelling: the next token of what is to be said; loss, perplexity, accuracy."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from torch import Generator, Tensor, nn

from fedsvd.adapters import lora
from fedsvd.adapters.build import build_adapter
from fedsvd.data.task import Task
from fedsvd.data.tokens import Batch, Tokens, kept_tokens
from fedsvd.errors import InputError, wrong
from fedsvd.models.base import Model
from fedsvd.models.decoder import Output, body_of, load_language_model, output_of
from fedsvd.models.digest import weights_digest
from fedsvd.models.language_model import LanguageModel, Said
from fedsvd.objectives.base import Exported, Head, Objective, found_again
from fedsvd.objectives.metric import PERPLEXITY, TOKEN_ACCURACY, Metric
from fedsvd.objectives.said import encode
from fedsvd.settings import DataSettings, Settings

FOLDER, FILE = "language_model", "language_model.json"


@final
class Causal(Objective):
    """Every counted token from those before it. Outputs: sum of losses, right ones, tokens (n, 3).

    The loss of an example is the mean over its own counted tokens.
    """

    name: ClassVar[str] = "causal"
    metrics: ClassVar[tuple[Metric, ...]] = (PERPLEXITY, TOKEN_ACCURACY)
    unusable: ClassVar[str] = "nothing that is to be said gives a token"
    peft_task: ClassVar[str | None] = "CAUSAL_LM"

    def check(self, settings: Settings) -> None:
        """Refuse what needs labels, a head that trains, or clients that this version cannot serve."""
        if settings.adapter.name == "none":
            raise wrong(
                "adapter", "none", "another one with task=causal: the output layer is frozen"
            )
        if settings.attack.name == "label_flip" and settings.attack.clients:
            raise wrong("attack", "label_flip", "another one with task=causal: rows have no labels")
        if settings.partition.name == "own":
            raise wrong(
                "partition", "own",
                "another one with task=causal: a node's policy knows rows with labels alone",
            )  # fmt: skip
        looks = build_adapter(settings.adapter).needs_gradients and not settings.data.public
        if looks and settings.data.label_texts is not None:
            raise wrong(
                "data.label_texts", [list(words) for words in settings.data.label_texts],
                "null with task=causal, where they describe nothing that an adapter could start from",
            )  # fmt: skip
        if settings.data.messages is None and not settings.data.text:
            raise wrong("data.text", [], "a column of texts, or prompt and completion")

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

    def random(self, tokens: Tokens, classes: int, generator: Generator) -> Tokens:
        """Return the tokens, of which the later half of each row counts."""
        counted = [torch.arange(int(t)) >= int(t) // 2 for t in tokens.lengths]
        return replace(tokens, counted=counted)

    def described(self, settings: Settings, task: Task, tokenizer: Any) -> Tokens | None:
        """Return None: only rows say what is to be said."""
        return None

    def output(self, settings: Settings) -> Head:
        """Return that the head is the model's own."""
        return Head("own", "linear", "its own output layer, frozen")

    def pretrained(self, settings: Settings) -> nn.Module:
        """Return the decoder with its output layer."""
        return load_language_model(settings.model)

    def backbone(self, settings: Settings) -> tuple[nn.Module, str]:
        """Return the decoder; it remembers its output layer."""
        whole = load_language_model(settings.model)
        body = body_of(whole)
        object.__setattr__(body, "_output", output_of(whole))  # not a part: tied to the embeddings
        return body, weights_digest(body)

    def head(
        self, settings: Settings, backbone: nn.Module, tokenizer: Any, task: Task,
        device: torch.device, precision: str,
    ) -> nn.Module:  # fmt: skip
        """Return the output layer, which is the table of embeddings itself where they are tied."""
        return _output(backbone).head.to(device)

    def model(
        self, settings: Settings, attached: lora.Attached, head: nn.Module, precision: str
    ) -> LanguageModel:
        """Return the language model."""
        own = _output(attached.model)
        return LanguageModel(attached, head, precision=precision, scale=own.scale, cap=own.cap)

    def losses(self, model: Model, batch: Batch, entering: Tensor | None = None) -> Tensor:
        """Return the mean (n,) of -log p over each example's counted tokens."""
        said = _said(model, batch, entering)
        return said.by_row(said.losses) / said.counts

    def flipped(self, batch: Batch, classes: int) -> Batch:
        """Raise TypeError: there are no labels, and `check` has refused the attack."""
        raise TypeError("rows have no labels")

    def width(self, classes: int) -> int:
        """Return 3."""
        return 3

    def outputs(self, model: Model, batch: Batch, entering: Tensor | None = None) -> Tensor:
        """Return the sum of -log p, the number of right tokens and that of all (n, 3)."""
        said = _said(model, batch, entering)
        right = said.by_row(said.right.to(said.losses.dtype))
        return torch.stack([said.by_row(said.losses), right, said.counts.to(right)], dim=1)

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

    def details(self, outputs: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return nothing: rows have no labels."""
        return {}

    def prefix(self, backbone: nn.Module) -> str:
        """Return what the decoder is called in the whole model, as "model."."""
        known: Any = backbone
        return f"{known.base_model_prefix}."

    def export(self, given: Exported, folder: Path) -> None:
        """Write `language_model/`: what is needed to put the model together again."""
        model, folder = given.settings.model, folder / FOLDER
        folder.mkdir(parents=True, exist_ok=True)
        description = {
            **found_again(given),
            "max_length": model.max_length,
            "messages": given.settings.data.messages is not None,
            "text_columns": len(given.settings.data.text),
            "adapter": given.written == "adapter",
            "merged": given.written == "merged",
        }
        (folder / FILE).write_text(json.dumps(description, indent=2) + "\n", encoding="utf-8")


def _output(backbone: nn.Module) -> Output:
    known: Any = backbone
    found: Output = known._output
    return found


def _said(model: Model, batch: Batch, entering: Tensor | None) -> Said:
    assert isinstance(model, LanguageModel)
    assert batch.counted is not None
    return model.said(batch.inputs, batch.counted, entering)
