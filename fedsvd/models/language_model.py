"""A causal language model: frozen decoder with factors, its own frozen output layer."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, final

import torch
from torch import Tensor, nn

from fedsvd.adapters import lora
from fedsvd.models.base import Model

CHUNK_BYTES = 2**26  # of logits in float32 that stand in memory at once
PIECE = 2**10  # of the vocabulary whose products are summed at once


@final
@dataclass(frozen=True)
class Said:
    """What a model says of the tokens that count: m of them, by rows and then by places.

    `losses` (m,) are -log p of each given all before it, float32; `right` (m,) whether it was the
    likeliest; `where` (n, t - 1) is True at the places from which they are predicted.
    """

    losses: Tensor
    right: Tensor
    where: Tensor

    def by_row(self, values: Tensor) -> Tensor:
        """Return the sum (n,) of each row's `values` (m,)."""
        placed = values.new_zeros(self.where.shape)
        placed[self.where] = values
        return placed.sum(dim=1)

    @property
    def counts(self) -> Tensor:
        """How many tokens of each row count, (n,) int64."""
        return self.where.sum(dim=1)


@final
class LanguageModel(Model):
    """logits = cap(scale * head(backbone(tokens))), where cap(z) = c tanh(z / c), or nothing.

    The head is the pretrained model's own, frozen, also where it is the table of embeddings. Its
    product runs in the model's precision, losses are float32 (or the parameters' dtype). `whole` is
    the pretrained model of which backbone and head are parts, with all that they have become.
    """

    def __init__(
        self, attached: lora.Attached, head: nn.Module, *, precision: str, scale: float = 1.0,
        cap: float | None = None, whole: nn.Module | None = None,
    ) -> None:  # fmt: skip
        super().__init__(attached, head, precision=precision, head_trains=False)
        self.scale, self.cap = scale, cap
        object.__setattr__(self, "_whole", whole)  # not a part: the backbone is a part of it

    def forward(self, inputs: Mapping[str, Tensor], entering: Tensor | None = None) -> Tensor:
        """Return all logits (n, t, V); training and evaluation never ask for them at once."""
        known: Any = self.head
        hidden = self.hidden(inputs, entering).to(_working(known.weight))
        return capped(self.scale * known(hidden), self.cap)

    def features(self, inputs: Mapping[str, Tensor], entering: Tensor | None = None) -> Tensor:
        """Return the hidden states of each example's tokens, (n, t d), zero at padding."""
        known: Any = self.head
        hidden = self.hidden(inputs, entering).to(_working(known.weight))
        return torch.where(inputs["attention_mask"].bool().unsqueeze(-1), hidden, 0).flatten(1)

    def said(
        self, inputs: Mapping[str, Tensor], counted: Tensor, entering: Tensor | None = None
    ) -> Said:
        """Return what the model says of the tokens that are `counted` (n, t), but for each first one.

        Logits are computed for so many tokens at a time that they take at most CHUNK_BYTES.
        """
        known: Any = self.head
        hidden = self.hidden(inputs, entering)[:, :-1]
        where = counted[:, 1:]
        chosen = hidden[where].to(_working(known.weight))
        targets = inputs["input_ids"][:, 1:][where]
        losses, right = losses_of(chosen, self.head, targets, self.scale, self.cap, self.precision)
        return Said(losses, right, where)

    @property
    def whole(self) -> nn.Module:
        """The model as Transformers has it, with the factors in it, for generation."""
        known: Any = self._whole
        assert isinstance(known, nn.Module)
        return known

    def subspaces(self) -> list[nn.Parameter]:
        """Return none: nothing trains on a manifold."""
        return []

    def settle(self) -> None:
        """Nothing follows from a frozen head."""


def losses_of(
    hidden: Tensor, head: nn.Module, targets: Tensor, scale: float, cap: float | None,
    precision: str,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """Return -log p (m,) of target tokens from hidden states (m, d), and which were the likeliest.

    `head` is a frozen linear layer (V, d). At most CHUNK_BYTES of logits stand in memory at once.
    """
    known: Any = head
    bf16 = precision == "bf16"
    with torch.autocast(hidden.device.type, enabled=False):
        losses, right = _Chunked.apply(hidden, known.weight, known.bias, targets, scale, cap, bf16)
    return losses, right


def chunk_of(head: nn.Module) -> int:
    """Return of how many tokens the logits stand in memory at once, for an output layer (V, d)."""
    known: Any = head
    return max(1, CHUNK_BYTES // (4 * len(known.weight)))


def capped(logits: Tensor, cap: float | None) -> Tensor:
    """Return c tanh(z / c) of logits z (Gemma Team, 2024, arXiv 2408.00118), or the logits."""
    return logits if cap is None else cap * torch.tanh(logits / cap)


def _working(weight: Tensor) -> torch.dtype:
    """Return in what hidden states and losses are: float32, also where weights are bfloat16."""
    return torch.float32 if weight.dtype == torch.bfloat16 else weight.dtype


def _add_product(out: Tensor, left: Tensor, right: Tensor) -> None:
    """Add left (m, V) @ right (V, d) to out (m, d), on the CPU over V piece by piece.

    For few rows kernels there sum all V products one after another, by which the float32 gradient of
    an example that is alone was off by 7e-5 at V = 49,152, and in a batch by 7e-7.
    """
    if left.device.type != "cpu":
        out += (left @ right).to(out.dtype)
        return
    for start in range(0, left.shape[1], PIECE):
        piece = slice(start, start + PIECE)
        out += (left[:, piece] @ right[piece]).to(out.dtype)


class _Chunked(torch.autograd.Function):
    """-log p of m target tokens from hidden states (m, d), without all m x V logits at once.

    The output layer (V, d) is frozen, so that the gradient in the hidden states, s (p - 1_target) W,
    can be computed chunk by chunk on the way forward; that alone is kept for the way back.
    """

    @staticmethod
    def forward(
        ctx: Any, hidden: Tensor, weight: Tensor, bias: Tensor | None, targets: Tensor,
        scale: float, cap: float | None, bf16: bool,
    ) -> tuple[Tensor, Tensor]:  # fmt: skip
        dtype = torch.bfloat16 if bf16 else hidden.dtype
        narrow, size = weight.to(dtype), max(1, CHUNK_BYTES // (4 * len(weight)))
        losses = hidden.new_zeros(len(hidden))
        right = torch.zeros(len(hidden), dtype=torch.bool, device=hidden.device)
        wanted = ctx.needs_input_grad[0]
        gradient = torch.zeros_like(hidden) if wanted else None
        for start in range(0, len(hidden), size):
            part = slice(start, start + size)
            logits = nn.functional.linear(hidden[part].to(dtype), narrow).to(hidden.dtype)
            if bias is not None:
                logits += bias
            logits = capped(logits * scale, cap)
            at = targets[part].unsqueeze(1)
            top = logits.logsumexp(dim=1, keepdim=True)
            losses[part] = (top - logits.gather(1, at)).squeeze(1)
            right[part] = logits.argmax(dim=1) == targets[part]
            if gradient is not None:
                slope = scale if cap is None else scale * (1 - (logits / cap).square())
                moved = (logits - top).exp_()
                moved.scatter_add_(1, at, torch.full_like(at, -1, dtype=moved.dtype))
                _add_product(gradient[part], (moved * slope).to(dtype), narrow)
        ctx.gradient = gradient
        ctx.mark_non_differentiable(right)
        return losses, right

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        gradient = ctx.gradient
        return (grads[0].unsqueeze(1) * gradient, None, None, None, None, None, None)
