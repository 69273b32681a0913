"""Classification heads: how the layer from features to logits starts, and whether it trains."""

import math

import torch
from torch import Tensor

from fedsvd.adapters.linear import FactorLinear
from fedsvd.randomness import Purpose, torch_stream


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
