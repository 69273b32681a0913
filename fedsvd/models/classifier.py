"""A sequence classifier: frozen backbone with factors, pooling, head."""

from collections.abc import Mapping
from typing import final

import torch
from torch import Tensor, nn

from fedsvd.adapters import lora
from fedsvd.models.base import Model
from fedsvd.models.fixed_heads import GrassmannHead


@final
class Classifier(Model):
    """logits = scale * head(pool(backbone(tokens))).

    Pooling, head and everything that trains are float32 (or the parameters' dtype).
    """

    def __init__(
        self,
        attached: lora.Attached,
        head: nn.Module,
        *,
        pooling: str,
        normalize: bool,
        scale: float,
        precision: str,
        head_trains: bool,
    ) -> None:
        super().__init__(attached, head, precision=precision, head_trains=head_trains)
        self.on_manifold = head_trains and isinstance(head, GrassmannHead)
        self.pooling, self.normalize, self.scale = pooling, normalize, scale

    def forward(self, inputs: Mapping[str, Tensor], entering: Tensor | None = None) -> Tensor:
        """Return logits (n, K) in float32 for padded inputs (n, t).

        `entering` (n, t, d), if given, enters the first block above `lower`, which is not run.
        """
        logits: Tensor = self.scale * self.head(self.features(inputs, entering))
        return logits

    def features(self, inputs: Mapping[str, Tensor], entering: Tensor | None = None) -> Tensor:
        """Return the pooled features (n, d) that the head sees."""
        hidden = self.hidden(inputs, entering)
        dtype = next(self.head.parameters()).dtype
        features = pool(hidden.to(dtype), inputs["attention_mask"], self.pooling)
        return nn.functional.normalize(features, dim=1) if self.normalize else features

    def subspaces(self) -> list[nn.Parameter]:
        """Return the bases of subspaces that train on their manifold: those of a Grassmann head."""
        head = self.head
        return [head.subspaces] if isinstance(head, GrassmannHead) and self.on_manifold else []

    def settle(self) -> None:
        """Let a Grassmann head take its bases as they are now."""
        if isinstance(self.head, GrassmannHead):
            self.head.settle()


def pool(hidden: Tensor, mask: Tensor, pooling: str) -> Tensor:
    """Reduce hidden states (n, t, d) under a mask (n, t) of 0 and 1 to (n, d).

    "mean" averages the tokens that are not padding, "cls" takes the first, "last" the last of them.
    Whatever padding holds, also what is not finite, is not looked at.
    """
    if pooling == "mean":
        weight = mask.unsqueeze(-1)
        selected = torch.where(weight.bool(), hidden, 0)
        return selected.sum(dim=1) / weight.sum(dim=1).to(hidden.dtype)
    if pooling == "cls":
        return hidden[:, 0]
    last = mask.sum(dim=1) - 1
    return hidden[torch.arange(len(hidden), device=hidden.device), last]
