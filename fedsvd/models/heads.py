"""Classification heads of one or two layers from features to logits, and how they start."""

import math
from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from fedsvd.adapters.linear import FactorLinear
from fedsvd.randomness import Purpose, torch_stream

STD = 0.02  # of a two-layer head's random weights, Transformers' initializer_range


@final
class TwoLayerHead(nn.Module):
    """logits = out_proj(drop(tanh(dense(drop(x))))), dense d x d: RoBERTa's head in Transformers.

    What `RobertaClassificationHead` computes of the first token's features. It drops in training
    mode, also where its weights are frozen.
    """

    def __init__(
        self, features: int, classes: int, bias: bool, dropout: float, device: torch.device
    ) -> None:
        super().__init__()
        self.dense = FactorLinear(features, features, bias=bias, device=device)
        self.dropout = nn.Dropout(dropout)
        self.out_proj = FactorLinear(features, classes, bias=bias, device=device)

    def forward(self, x: Tensor) -> Tensor:
        """Return logits (n, K) of features (n, d)."""
        hidden = torch.tanh(self.dense(self.dropout(x)))
        logits: Tensor = self.out_proj(self.dropout(hidden))
        return logits


def two_layer_head(
    features: int, classes: int, bias: bool, seed: int, device: torch.device, *,
    dropout: float = 0.0, zeros: bool = False,
) -> TwoLayerHead:  # fmt: skip
    """Return a two-layer head with weights from N(0, 0.02^2), the stream (seed, "head"), bias 0.

    With `zeros` those of `out_proj` are zero, so that every class starts equally likely.
    """
    head = TwoLayerHead(features, classes, bias, dropout, device)
    generator = torch_stream(seed, Purpose.HEAD)
    set_head(head.dense, torch.empty(features, features).normal_(0, STD, generator=generator))
    drawn = torch.empty(classes, features).normal_(0, STD, generator=generator)
    set_head(head.out_proj, torch.zeros_like(drawn) if zeros else drawn)
    return head


def scores(weights: Mapping[str, Tensor], x: Tensor) -> Tensor:
    """Return what a head of one or two layers with these parameters makes of features (n, d)."""
    last = "out_proj." if "dense.weight" in weights else ""
    if last:
        x = nn.functional.linear(x, weights["dense.weight"], weights.get("dense.bias"))
        x = torch.tanh(x)
    return nn.functional.linear(x, weights[f"{last}weight"], weights.get(f"{last}bias"))


def random_head(
    features: int, classes: int, bias: bool, seed: int, device: torch.device
) -> FactorLinear:
    """Return a head with weights from U(-1/sqrt d, 1/sqrt d), the stream (seed, "head"), bias 0."""
    head = FactorLinear(features, classes, bias=bias, device=device)
    weight = torch.empty(classes, features)
    weight.uniform_(-1, 1, generator=torch_stream(seed, Purpose.HEAD)).div_(math.sqrt(features))
    return set_head(head, weight)


def zero_head(features: int, classes: int, bias: bool, device: torch.device) -> FactorLinear:
    """Return a head of zeros: every class starts equally likely."""
    head = FactorLinear(features, classes, bias=bias, device=device)
    return set_head(head, torch.zeros(classes, features))


def text_head(prototypes: Tensor, bias: bool) -> FactorLinear:
    """Return a head whose weight rows are unit vectors from class prototypes.

    `prototypes` (K, d) are the features of texts that describe each class; their mean over classes
    is subtracted and each row normalised. The texts are the user's words and public; no example of
    any client enters.
    """
    classes, features = prototypes.shape
    centred = prototypes - prototypes.mean(dim=0)
    head = FactorLinear(features, classes, bias=bias, device=prototypes.device)
    return set_head(head, torch.nn.functional.normalize(centred, dim=1))


@torch.no_grad()
def set_head(head: FactorLinear, weight: Tensor) -> FactorLinear:
    """Return the head with this weight (K, d) and a bias of 0."""
    head.weight.copy_(weight)
    if head.bias is not None:
        head.bias.zero_()
    return head
