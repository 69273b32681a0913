"""Classification of texts: a head on pooled features, cross-entropy, accuracy."""

import json
from dataclasses import replace
from pathlib import Path
from typing import Any, ClassVar, final

import torch
from safetensors.torch import save_file
from torch import Generator, Tensor, nn

from fedsvd.adapters import lora
from fedsvd.data.task import Task
from fedsvd.data.tokens import Batch, Tokens, tokenise
from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState
from fedsvd.models.backbone import load_backbone, outlined
from fedsvd.models.base import Model
from fedsvd.models.classifier import Classifier
from fedsvd.models.fixed_heads import fixed_head
from fedsvd.models.heads import random_head, text_head, two_layer_head, zero_head
from fedsvd.models.kept import kept_backbone
from fedsvd.objectives.base import Exported, Head, Objective, found_again
from fedsvd.objectives.label_texts import label_tokens
from fedsvd.objectives.metric import ACCURACY, Metric
from fedsvd.settings import DataSettings, Settings
from fedsvd.settings.model import FIXED_HEADS
from fedsvd.threads import one_thread

CLASSIFIER, HEAD = "classifier.json", "head.safetensors"
MOST_LABELS = 100  # in a matrix of confusion


@final
class Classification(Objective):
    """One of K labels for every row. Outputs are the logits (n, K)."""

    name: ClassVar[str] = "classification"
    metrics: ClassVar[tuple[Metric, ...]] = (ACCURACY,)
    unusable: ClassVar[str] = "its text gives no tokens"

    def check(self, settings: Settings) -> None:
        """Refuse rows without a label."""
        if settings.data.endings is not None:
            raise wrong("data.endings", settings.data.endings, "used with task=choice")
        if settings.data.label is None or settings.data.messages is not None:
            key = "data.label" if settings.data.label is None else "data.messages"
            raise wrong(
                key, getattr(settings.data, key.removeprefix("data.")),
                "used with task=causal; rows to classify are texts with a label",
            )  # fmt: skip

    def columns(self, data: DataSettings) -> DataSettings:
        """Return the settings as they are: texts and a label."""
        return data

    def tokens(self, settings: Settings, task: Task, tokenizer: Any) -> Tokens:
        """Return the task's texts as tokens, with their labels."""
        return tokenise(tokenizer, task.texts, task.labels, settings.model.max_length)

    def random(self, tokens: Tokens, classes: int, generator: Generator) -> Tokens:
        """Return the tokens with random labels."""
        labels = torch.randint(classes, (len(tokens.lengths),), generator=generator)
        return replace(tokens, labels=labels)

    def described(self, settings: Settings, task: Task, tokenizer: Any) -> Tokens | None:
        """Return the public words of the labels, with these."""
        if settings.data.label_texts is None:
            return None
        return label_tokens(settings, task, tokenizer)

    def output(self, settings: Settings) -> Head:
        """Return the pooling and the head that `model` asks for."""
        model = settings.model
        layers = " of two layers" if model.head_form == "two_layer" else ""
        phrase = f"{model.pooling} pooling, head {model.head}{layers}"
        return Head(model.head, model.head_form, phrase)

    def pretrained(self, settings: Settings) -> nn.Module:
        """Return the backbone, which is all that comes pretrained."""
        return load_backbone(settings.model)

    def outline(self, settings: Settings) -> nn.Module:
        """Return the backbone's class from its configuration alone."""
        return outlined(settings.model)

    def backbone(self, settings: Settings) -> tuple[nn.Module, str]:
        """Return the backbone without a head of its own."""
        return kept_backbone(settings.model)

    def head(
        self, settings: Settings, backbone: nn.Module, tokenizer: Any, task: Task,
        device: torch.device, precision: str,
    ) -> nn.Module:  # fmt: skip
        """Return the head that `model.head` and the keys beside it ask for."""
        model = settings.model
        features, bias = int(backbone.config.hidden_size), model.head_bias  # type: ignore[union-attr,arg-type]
        if model.head in FIXED_HEADS:
            return fixed_head(
                model.head, features, task.classes, settings.seed, device,
                model.head_cosine, model.head_dim,
            )  # fmt: skip
        if model.head_form == "two_layer":
            return two_layer_head(
                features, task.classes, bias, settings.seed, device,
                dropout=model.dropout, zeros=model.head_start == "zeros",
            )  # fmt: skip
        if model.head_start == "zeros":
            return zero_head(features, task.classes, bias, device)
        if model.head_start == "random":
            return random_head(features, task.classes, bias, settings.seed, device)
        tokens = label_tokens(settings, task, tokenizer)
        bare = self.model(
            settings, lora.Attached(backbone, {}, AdapterState({})),
            zero_head(features, task.classes, False, device), precision,
        )  # fmt: skip
        prototypes = []
        with torch.inference_mode(), one_thread():  # a frozen head never travels
            for label in range(task.classes):
                batch = tokens.batch((tokens.labels == label).nonzero().flatten().tolist(), device)
                prototypes.append(bare.features(batch.inputs).mean(dim=0))
        return text_head(torch.stack(prototypes).clone(), bias)

    def model(
        self, settings: Settings, attached: lora.Attached, head: nn.Module, precision: str
    ) -> Classifier:
        """Return the classifier."""
        model = settings.model
        return Classifier(
            attached,
            head,
            pooling=model.pooling,
            normalize=model.unit_features,
            scale=model.logit_scale,
            precision=precision,
            head_trains=model.head_trains,
        )

    def losses(self, model: Model, batch: Batch, entering: Tensor | None = None) -> Tensor:
        """Return the cross-entropy (n,) of each example's label."""
        logits = model(batch.inputs, entering)
        return nn.functional.cross_entropy(logits, batch.labels, reduction="none")

    def flipped(self, batch: Batch, classes: int) -> Batch:
        """Return the batch with the labels K - 1 - y for y."""
        return replace(batch, labels=flip(batch.labels, classes))

    def width(self, classes: int) -> int:
        """Return K."""
        return classes

    def outputs(self, model: Model, batch: Batch, entering: Tensor | None = None) -> Tensor:
        """Return the logits (n, K)."""
        logits: Tensor = model(batch.inputs, entering)
        return logits

    def measure(self, outputs: Tensor, labels: Tensor) -> dict[str, float]:
        """Return the share of right labels in [0, 1] and the mean cross-entropy."""
        accuracy = (outputs.argmax(dim=1) == labels).double().mean()
        loss = nn.functional.cross_entropy(outputs, labels)
        return {"accuracy": float(accuracy), "loss": float(loss)}

    def details(self, outputs: Tensor, labels: Tensor) -> dict[str, Any]:
        """Return `macro_f1`, `mcc` and, of up to `MOST_LABELS` labels, `confusion` (K, K).

        Macro-F1 is the mean over the labels that occur or are predicted; Matthews' correlation is
        Gorodkin's for K labels. confusion[i][j] counts rows of label i that are taken for j.
        """
        from sklearn.metrics import confusion_matrix, f1_score, matthews_corrcoef  # slow to import

        true, taken, classes = labels.numpy(), outputs.argmax(dim=1).numpy(), outputs.shape[1]
        found: dict[str, Any] = {
            "macro_f1": float(f1_score(true, taken, average="macro", zero_division=0.0)),
            "mcc": float(matthews_corrcoef(true, taken)),
        }
        if classes <= MOST_LABELS:
            found["confusion"] = confusion_matrix(true, taken, labels=range(classes)).tolist()
        return found

    def prefix(self, backbone: nn.Module) -> str:
        """Return "": the backbone is all that comes pretrained."""
        return ""

    def export(self, given: Exported, folder: Path) -> None:
        """Write `classifier/`: the head, and what is needed to put the model together again."""
        model, folder = given.settings.model, folder / "classifier"
        head = {f"head.{n}": p.detach().cpu() for n, p in given.model.head.named_parameters()}
        folder.mkdir(parents=True, exist_ok=True)
        save_file({n: t.contiguous() for n, t in head.items()}, folder / HEAD)
        description = {
            **found_again(given),
            "pooling": model.pooling,
            "normalize": model.unit_features,
            "scale": model.logit_scale,
            "max_length": model.max_length,
            "labels": list(given.task.label_names),
            "text_columns": len(given.settings.data.text),
            "adapter": given.written == "adapter",
            "merged": given.written == "merged",
        }
        text = json.dumps(description, indent=2) + "\n"
        (folder / CLASSIFIER).write_text(text, encoding="utf-8")


def flip(labels: Tensor, classes: int) -> Tensor:
    """Return K - 1 - y for labels y of K classes."""
    return classes - 1 - labels
