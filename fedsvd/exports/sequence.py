"""A finished run as Transformers' own classifier, where its head and pooling have one.

Classifiers of BERT, RoBERTa and DistilBERT read the first token, through a dense layer; a decoder
reads the last token, through one linear map without a bias. What does not fit is refused.
"""

import copy
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from fedsvd.errors import InputError
from fedsvd.exports.load import LoadedClassifier

SMALL = 1e-4  # tanh(SMALL x) / SMALL is x to 3e-7 for |x| < 10: less than float32 sees
CLOSE = 1e-4  # of logits, relative to the largest
WITHOUT = "python: use fedsvd.load(RUN_DIR).logits(texts) (docs/handover.md has it in five lines)"


def to_transformers(loaded: LoadedClassifier, folder: Path | str) -> Path:
    """Write a model that `pipeline("text-classification")` loads, and its tokeniser; return `folder`.

    Its logits are those of `loaded`: they are compared on a few words before anything is written.
    Raises InputError that says why, where the run's head or pooling have no such form.
    """
    head, why = _head(loaded)
    if head is None:
        raise InputError(f"to_transformers: {why}; in {WITHOUT}")
    body = _merged(loaded.backbone)
    config = type(body.config).from_dict(body.config.to_dict())
    config.num_labels = len(loaded.labels)
    config.id2label = dict(enumerate(loaded.labels))
    config.label2id = {name: k for k, name in enumerate(loaded.labels)}
    config.problem_type = "single_label_classification"
    if config.pad_token_id is None:
        pad, end = loaded.tokenizer.pad_token_id, loaded.tokenizer.eos_token_id
        config.pad_token_id = end if pad is None else pad
    model = _built(config, body)
    with torch.no_grad():
        head(model)
    tokenizer = copy.deepcopy(loaded.tokenizer)
    tokenizer.model_max_length = loaded.model.max_length
    _compare(loaded, _read_back(tokenizer), model)
    out = Path(folder)
    model.save_pretrained(str(out))
    tokenizer.save_pretrained(str(out))
    return out


def _built(config: Any, body: nn.Module) -> Any:
    from transformers import AutoModelForSequenceClassification

    with torch.random.fork_rng(devices=[]):  # what it draws is replaced
        model: Any = AutoModelForSequenceClassification.from_config(config)
    model.base_model.load_state_dict(body.state_dict(), strict=False)
    return model.float().eval()


def _merged(backbone: nn.Module) -> Any:
    """Return a copy of the backbone on the CPU with its adapter in its weights."""
    found: Any = copy.deepcopy(backbone).to("cpu")
    return found.merge_and_unload() if hasattr(found, "merge_and_unload") else found


Put = Callable[[Any], None]


def _head(loaded: LoadedClassifier) -> tuple[Put | None, str]:
    """Return what puts the run's head into Transformers' model, or None and why there is nothing."""
    config: Any = loaded.backbone.config
    kind, model = config.model_type, loaded.model
    weights = {name: value.float().cpu() for name, value in loaded.head.items()}
    if model.normalize:
        return None, "the head takes features of length 1"
    if "subspaces" in weights or weights.get("weight", torch.zeros(1)).ndim == 3:
        return None, "the head measures projections on subspaces"
    two, scale = "dense.weight" in weights, model.logit_scale
    last = "out_proj." if two else ""
    W, b = scale * weights[f"{last}weight"], weights.get(f"{last}bias")
    b = torch.zeros(len(W)) if b is None else scale * b
    if kind in ("bert", "roberta", "xlm-roberta", "distilbert") and model.pooling != "cls":
        return None, f"pooling {model.pooling!r}, and Transformers' {kind} reads the first token"
    if kind in ("bert", "roberta", "xlm-roberta"):
        return lambda m: _through_tanh(m, weights, W, b, two), ""
    if kind == "distilbert" and not two and 2 * len(W) <= W.shape[1]:
        return lambda m: _through_relu(m, W, b), ""
    if model.pooling == "last" and not two and not b.any():
        return lambda m: _set(m.score, W, None), ""
    return None, f"a {kind} with this head has no form in Transformers"


def _through_tanh(model: Any, own: dict[str, Tensor], W: Tensor, b: Tensor, two: bool) -> None:
    """Set dense, tanh and linear map: two layers as they are, one layer where tanh is linear."""
    if hasattr(model.classifier, "out_proj"):
        dense, last = model.classifier.dense, model.classifier.out_proj
    else:
        dense, last = model.bert.pooler.dense, model.classifier
    if two:
        _set(dense, own["dense.weight"], own.get("dense.bias"))
        _set(last, W, b)
        return
    K, d = W.shape
    if d < K:
        raise InputError(f"to_transformers: {K} labels are more than the {d} features")
    rows, shift = torch.zeros(d, d), torch.zeros(d)
    rows[:K], shift[:K] = SMALL * W, SMALL * b
    _set(dense, rows, shift)
    _set(last, torch.eye(K, d) / SMALL, None)


def _through_relu(model: Any, W: Tensor, b: Tensor) -> None:
    """Set dense, ReLU and linear map so that x = relu(x) - relu(-x) passes for each label."""
    K, d = W.shape
    rows, shift, last = torch.zeros(d, d), torch.zeros(d), torch.zeros(K, d)
    for sign, at in ((1.0, 0), (-1.0, K)):
        rows[at : at + K], shift[at : at + K] = sign * W, sign * b
        last[:, at : at + K] = sign * torch.eye(K)
    _set(model.pre_classifier, rows, shift)
    _set(model.classifier, last, None)


def _set(layer: nn.Linear, weight: Tensor, bias: Tensor | None) -> None:
    layer.weight.copy_(weight)
    if layer.bias is not None:
        layer.bias.copy_(torch.zeros_like(layer.bias) if bias is None else bias)


def _read_back(tokenizer: Any) -> Any:
    """Return the tokeniser as others will read it, who may give the model more than the run did."""
    from transformers import AutoTokenizer

    with tempfile.TemporaryDirectory() as folder:
        tokenizer.save_pretrained(folder)
        return AutoTokenizer.from_pretrained(folder)


@torch.inference_mode()
def _compare(loaded: LoadedClassifier, tokenizer: Any, model: Any) -> None:
    """Raise InputError unless both compute the same logits of a few words, long and short."""
    words = ["the first words", "another one, which is somewhat longer than the others are", "end"]
    texts = [(word, word) for word in words] if loaded.columns == 2 else words
    expected = loaded.logits(texts)
    for row, text in zip(expected, texts, strict=True):
        pair = text if isinstance(text, tuple) else (text,)
        inputs = tokenizer(*pair, return_tensors="pt")
        found = model(**inputs).logits[0].float()
        if float((found - row).abs().max()) > CLOSE * max(1.0, float(row.abs().max())):
            raise InputError(
                "to_transformers: Transformers' model computes other logits than this run's, so "
                f"nothing is written; in {WITHOUT}"
            )
