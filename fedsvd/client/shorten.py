"""Whether a model's frozen parts can run as one operation each, measured on the model at hand."""

from collections.abc import Hashable

import torch
from torch import Tensor, nn

from fedsvd.client import remembered
from fedsvd.data.tokens import Tokens
from fedsvd.models.base import Model
from fedsvd.models.classifier import Classifier
from fedsvd.models.tail import Tail, parts_of
from fedsvd.privacy.exactness import CLEAR, TOLERANCE, apart


def shorten(model: Model, asked: Tokens, device: torch.device, key: Hashable = None) -> list[Tail]:
    """Let what follows attention in the model's frozen blocks run as one operation; return which do.

    Of the last block it is computed at the first token alone where features are that token's. The
    features of random texts `asked`, alone and padded, are compared with those of the model as it
    was; where they differ by more than rounding, or it fails, the model is left as it was. So is one
    that is no classifier. With a `key`, which says all that the answer follows from but for what a
    seed draws, a process that has found the parts to be clearly right does not ask again.
    """
    if not isinstance(model, Classifier):
        return []
    # A part of the model may draw numbers; a run's own draws must not move by it.
    with torch.random.fork_rng(devices=[device] if device.type == "cuda" else []):
        return _shortened(model, asked, device, key)


def _shortened(model: Classifier, asked: Tokens, device: torch.device, key: Hashable) -> list[Tail]:
    if key is not None and remembered.passed(key):
        return tails(model.backbone, model.pooling)
    before = _features(model, asked, device)
    made = tails(model.backbone, model.pooling)
    far = _farthest(before, model, asked, device) if made else 0.0
    if far > TOLERANCE:
        for tail in made:
            tail.remove()
        return []
    if key is not None and far < CLEAR * TOLERANCE:
        remembered.note(key)
    return made


def tails(backbone: nn.Module, pooling: str) -> list[Tail]:
    """Put a `Tail` on every block of a backbone whose form is known and that is frozen."""
    made = []
    for stack in [m for m in backbone.modules() if isinstance(m, nn.ModuleList)]:
        for block in stack:
            parts = parts_of(block)
            if parts is not None and parts.plain:
                first = pooling == "cls" and block is stack[-1]
                made.append(Tail(block, parts, first))
    return made


def _farthest(
    before: list[Tensor], model: Classifier, asked: Tokens, device: torch.device
) -> float:
    """Return how far any text's features are from those before, relative to their norm."""
    try:
        return apart(torch.cat(_features(model, asked, device)), torch.cat(before))
    except (RuntimeError, ValueError, TypeError, IndexError):  # a part that is not as it looks
        return float("inf")


@torch.no_grad()
def _features(model: Classifier, asked: Tokens, device: torch.device) -> list[Tensor]:
    """Return the features in float32 of each text alone, and of all padded."""
    precision, model.precision = model.precision, "fp32"
    rows = range(len(asked.labels))
    try:
        return [
            model.features(asked.batch(group, device).inputs)
            for group in [*([row] for row in rows), list(rows)]
        ]
    finally:
        model.precision = precision
