"""What objectives of a causal language model have in common: the model, its losses, the export."""

import json
from abc import ABC
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, cast

import torch
from torch import Generator, Tensor, nn

from fedsvd.adapters import lora
from fedsvd.adapters.build import build_adapter
from fedsvd.adapters.stored import store
from fedsvd.data.task import Task
from fedsvd.data.tokens import Batch, Tokens
from fedsvd.errors import wrong
from fedsvd.models.backbone import outlined
from fedsvd.models.base import Model
from fedsvd.models.decoder import Output, body_of, load_language_model, output_of
from fedsvd.models.digest import weights_digest
from fedsvd.models.language_model import LanguageModel, Said
from fedsvd.objectives.base import Exported, Head, Objective, found_again
from fedsvd.settings import Settings

FOLDER, FILE = "language_model", "language_model.json"


class LanguageObjective(Objective, ABC):
    """Every counted token from those before it; the loss of an example is the mean over its own.

    Outputs of a sequence are the sum of -log p, the number of right tokens and that of all.
    """

    peft_task: ClassVar[str | None] = "CAUSAL_LM"

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

    def outline(self, settings: Settings) -> nn.Module:
        """Return the decoder's class from its configuration alone; it remembers its output layer."""
        from transformers import AutoModelForCausalLM

        whole = outlined(settings.model, AutoModelForCausalLM)
        body = body_of(whole)
        object.__setattr__(body, "_output", output_of(whole))
        return body

    def backbone(self, settings: Settings) -> tuple[nn.Module, str]:
        """Return the decoder; it remembers its output layer."""
        model = settings.model
        whole = load_language_model(model)
        body = body_of(whole)
        digest = weights_digest(body)  # of what was loaded, however it is held
        store(body, "float32", model.quantization, model.name)
        store(whole, model.dtype, "none", model.name)  # the output layer too
        object.__setattr__(body, "_output", output_of(whole))  # not a part: tied to the embeddings
        object.__setattr__(body, "_language_model", whole)  # of which it is a part; it generates
        return body, digest

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
        own, body = _output(attached.model), cast(Any, attached.model)
        return LanguageModel(
            attached, head, precision=precision, scale=own.scale, cap=own.cap,
            whole=body._language_model,
        )  # fmt: skip

    def losses(self, model: Model, batch: Batch, entering: Tensor | None = None) -> Tensor:
        """Return the mean (n,) of -log p over each example's counted tokens."""
        said = _said(model, batch, entering)
        return said.by_row(said.losses) / said.counts

    def flipped(self, batch: Batch, classes: int) -> Batch:
        """Raise TypeError: there are no labels of classes, and `check` has refused the attack."""
        raise TypeError("rows have no labels of classes")

    def outputs(self, model: Model, batch: Batch, entering: Tensor | None = None) -> Tensor:
        """Return the sum of -log p, the number of right tokens and that of all (n, 3)."""
        said = _said(model, batch, entering)
        right = said.by_row(said.right.to(said.losses.dtype))
        return torch.stack([said.by_row(said.losses), right, said.counts.to(right)], dim=1)

    def details(self, outputs: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return nothing: rows have no labels that are alike from row to row."""
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
            "task": self.name,
            "max_length": model.max_length,
            "messages": given.settings.data.messages is not None,
            "text_columns": len(self.columns(given.settings.data).text),
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


def check_frozen_output(settings: Settings, why: str) -> None:
    """Refuse what needs labels of classes or a head that trains, and nodes; `why` ends a message."""
    task = f"task={settings.task}"
    if settings.adapter.name == "none":
        raise wrong("adapter", "none", f"another one with {task}: the output layer is frozen")
    if settings.attack.name == "label_flip" and settings.attack.clients:
        raise wrong("attack", "label_flip", f"another one with {task}: {why}")
    if settings.partition.name == "own":
        raise wrong(
            "partition", "own",
            f"another one with {task}: a node's policy knows rows with labels of classes alone. In a "
            "simulation partition=natural takes the clients that a column names",
        )  # fmt: skip
    looks = build_adapter(settings.adapter).needs_gradients and not settings.data.public
    if looks and settings.data.label_texts is not None:
        raise wrong(
            "data.label_texts", [list(words) for words in settings.data.label_texts],
            f"null with {task}, where they describe nothing that an adapter could start from",
        )  # fmt: skip
