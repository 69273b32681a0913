"""What logits are worth, and how many tokens are evaluated at a time."""

import torch
from torch import Tensor

# Padded tokens of a batch that is evaluated: few fit a processor's caches, many fill a card.
TOKENS = {"cpu": 1024}
TOKENS_ELSEWHERE = 7680


def means(logits: Tensor, labels: Tensor) -> dict[str, float]:
    """Return the share of right labels in [0, 1] and the mean cross-entropy.

    `logits` are (n, K) and `labels` (n,) int64.
    """
    accuracy = (logits.argmax(dim=1) == labels).double().mean()
    loss = torch.nn.functional.cross_entropy(logits, labels)
    return {"accuracy": float(accuracy), "loss": float(loss)}
