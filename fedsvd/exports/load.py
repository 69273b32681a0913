"""A finished run as a classifier, or as the language model that it is."""

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedsvd.data.tokens import Tokens, tokenise
from fedsvd.errors import InputError
from fedsvd.exports.language import LoadedLanguageModel, load_language
from fedsvd.exports.parts import description, put_together, with_adapter
from fedsvd.exports.texts import rows_of
from fedsvd.models.backbone import load_backbone
from fedsvd.models.classifier import pool
from fedsvd.models.fixed_heads import projections
from fedsvd.models.heads import scores
from fedsvd.models.usable import fit_tokenizer, taken
from fedsvd.objectives.classification import CLASSIFIER, HEAD
from fedsvd.objectives.language import FILE, FOLDER
from fedsvd.settings import ModelSettings

FEATURES = ("pooling", "normalize", "scale")  # keys of `model` that a classifier needs beside


@dataclass(frozen=True)
class LoadedClassifier:
    """Tokeniser, backbone with its adapter, and head of a finished run, in float32.

    Attributes:
        tokenizer: the tokeniser.
        backbone: the pretrained model with its adapter.
        head: the tensors of the head.
        model: the settings of the model.
        labels: the names of the labels, in the order of the logits.
        columns: 1 for single texts, 2 for pairs, None if the run did not record it.
    """

    tokenizer: Any
    backbone: nn.Module
    head: dict[str, Tensor]
    model: ModelSettings
    labels: tuple[str, ...]
    columns: int | None = None

    @torch.inference_mode()
    def logits(self, texts: Any, tokens: int = 8192) -> Tensor:
        """Return the logits (n, K) of n texts, float32.

        Args:
            texts: a string, which is one text, or a list of strings; for a model of pairs a tuple of
                two strings, or a list of such. No texts give (0, K).
            tokens: the most tokens of a micro-batch.

        Raises:
            InputError: a text cannot be used: it is empty, gives no tokens or more than the model has
                places for, or is single where pairs are expected. The message has the number of the
                first such text, from 1.
        """
        rows = rows_of(texts, self.columns)
        out = torch.zeros(len(rows), len(self.labels))
        if not rows:
            return out
        table = tokenise(self.tokenizer, rows, [0] * len(rows), self.model.max_length)
        self._check(table)
        device = next(self.backbone.parameters()).device
        for group in table.microbatches(range(len(rows)), tokens):
            batch = table.batch(group, device)
            hidden = self.backbone(**batch.inputs).last_hidden_state.float()
            features = pool(hidden, batch.inputs["attention_mask"], self.model.pooling)
            if self.model.normalize:
                features = nn.functional.normalize(features, dim=1)
            # Runs of earlier versions call the subspaces of a Grassmann head its weight.
            weight = self.head.get("subspaces", self.head.get("weight"))
            if weight is not None and weight.ndim == 3:
                score = projections(features, weight)
            else:
                score = scores(self.head, features)
            out[torch.tensor(group)] = (self.model.logit_scale * score).cpu()
        return out

    def _check(self, table: Tokens) -> None:
        if table.empty:
            number = table.empty[0] + 1
            raise InputError(f"texts: number {number} gives no tokens with the model's tokeniser")
        device = next(self.backbone.parameters()).device
        most = taken(self.model.name, self.backbone, table) if device.type == "cpu" else None
        if most is not None and most < int(table.lengths.max()):
            number = int(torch.nonzero(table.lengths > most)[0]) + 1
            raise InputError(
                f"texts: number {number} gives {int(table.lengths[number - 1])} tokens; the model "
                f"takes {most}"
            )

    def predict(self, texts: Any) -> list[str]:
        """Return the name of the likeliest label of each text, a list also for a single text.

        `texts` are as for `logits`; no texts give [].
        """
        return [self.labels[int(i)] for i in self.logits(texts).argmax(dim=1)]


def load(
    run: str | Path, device: str | torch.device = "cpu"
) -> "LoadedClassifier | LoadedLanguageModel":
    """Return the model that a finished run left in its folder: a classifier, or a language model.

    The backbone is found as the run found it (package, folder or hub) and gets `adapter/` from
    PEFT. The model's results are on the CPU.

    Args:
        run: the folder of the run.
        device: where the model is put: "cpu", "cuda", "cuda:1".

    Raises:
        InputError: the folder holds no finished run, the device cannot be used, or the base model or
            its tokeniser are not those that the run was trained on.
    """
    folder, place = Path(run), _device(device)
    if (folder / FOLDER / FILE).is_file():
        return load_language(folder, place)
    told, model = description(folder, "classifier", CLASSIFIER, FEATURES)
    backbone, tokenizer = put_together(folder, told, model, load_backbone)
    fit_tokenizer(model.name, backbone, tokenizer)
    backbone = with_adapter(folder, told, backbone).to(place)
    head = load_file(folder / "classifier" / HEAD)
    weights = {n.removeprefix("head."): t.to(place) for n, t in head.items()}
    labels, columns = tuple(told["labels"]), told.get("text_columns")
    return LoadedClassifier(tokenizer, backbone, weights, model, labels, columns)


def _device(given: str | torch.device) -> torch.device:
    """Return the device; InputError for one that is not there."""
    try:
        device = torch.device(given)
        torch.empty(1, device=device)
    except (RuntimeError, AssertionError, TypeError) as error:
        why = str(error).splitlines()[0]
        raise InputError(f"device: {str(given)!r} cannot be used: {why}") from error
    return device
