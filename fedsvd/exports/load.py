"""A finished run as a classifier."""

import json
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch
from safetensors.torch import load_file
from torch import Tensor, nn

from fedsvd.data.tokens import tokenise
from fedsvd.errors import InputError
from fedsvd.exports.export import CLASSIFIER, HEAD, MERGED
from fedsvd.models.backbone import load_backbone, load_tokenizer
from fedsvd.models.classifier import pool
from fedsvd.models.fixed_heads import projections
from fedsvd.settings import ModelSettings


@dataclass(frozen=True)
class LoadedClassifier:
    """Tokeniser, backbone with its adapter, and head of a finished run, in float32."""

    tokenizer: Any
    backbone: nn.Module
    head: dict[str, Tensor]
    model: ModelSettings
    labels: tuple[str, ...]

    @torch.inference_mode()
    def logits(self, texts: Sequence[str | tuple[str, ...]], tokens: int = 8192) -> Tensor:
        """Return logits (n, K) of texts (or tuples of two), in micro-batches of `tokens` tokens."""
        rows = [(t,) if isinstance(t, str) else tuple(t) for t in texts]
        table = tokenise(self.tokenizer, rows, [0] * len(rows), self.model.max_length)
        out = torch.zeros(len(rows), len(self.labels))
        for group in table.microbatches(range(len(rows)), tokens):
            batch = table.batch(group)
            hidden = self.backbone(**batch.inputs).last_hidden_state.float()
            features = pool(hidden, batch.inputs["attention_mask"], self.model.pooling)
            if self.model.normalize:
                features = nn.functional.normalize(features, dim=1)
            weight = self.head["weight"]
            if weight.ndim == 3:
                score = projections(features, weight)
            else:
                score = nn.functional.linear(features, weight, self.head.get("bias"))
            out[torch.tensor(group)] = self.model.scale * score
        return out

    def predict(self, texts: Sequence[str | tuple[str, ...]]) -> list[str]:
        """Return the name of the likeliest label of each text."""
        return [self.labels[int(i)] for i in self.logits(texts).argmax(dim=1)]


def load(run: str | Path) -> LoadedClassifier:
    """Return the classifier that a finished run left in its folder.

    The backbone is found as the run found it (package, folder or hub) and gets `adapter/` from
    PEFT. Raises InputError if the folder holds no finished run.
    """
    folder = Path(run)
    try:
        told = json.loads((folder / "classifier" / CLASSIFIER).read_text(encoding="utf-8"))
        names = ("package", "folder", "revision", "pooling", "normalize", "scale", "max_length")
        model = ModelSettings(name=told["model"], **{k: told[k] for k in names})
    except (OSError, ValueError, KeyError, TypeError) as error:
        raise InputError(f"{folder}: holds no finished run (classifier/{CLASSIFIER})") from error
    own = replace(model, name=str(folder / MERGED), package=None, revision=None)
    backbone = load_backbone(own if told.get("merged") else model)
    if told["adapter"]:
        from peft import PeftModel

        if not (folder / "adapter" / "adapter_model.safetensors").is_file():
            raise InputError(f"{folder}: adapter/ holds no adapter_model.safetensors")
        with warnings.catch_warnings():
            warnings.simplefilter("error")  # a missing key is only a warning in PEFT
            warnings.filterwarnings("ignore", category=FutureWarning)
            backbone = PeftModel.from_pretrained(backbone, str(folder / "adapter")).eval()
    head = load_file(folder / "classifier" / HEAD)
    weights = {n.removeprefix("head."): t for n, t in head.items()}
    return LoadedClassifier(load_tokenizer(model), backbone, weights, model, tuple(told["labels"]))
