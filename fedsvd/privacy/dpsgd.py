"""One step of DP-SGD on what trains of a model, with Opacus's hooks and optimiser."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import numpy as np
import torch
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedsvd.privacy.clipping import clipped_sums
from fedsvd.privacy.hooks import attach_hooks
from fedsvd.privacy.noise import noised
from fedsvd.randomness import uniforms

__all__ = [
    "UNFINISHED", "ClippingOptimizer", "StepReport", "attach_hooks", "dp_step",
    "gradients_alone", "make_optimizer", "poisson_sample", "take_microbatch",
]  # fmt: skip

T = TypeVar("T")


@dataclass(frozen=True)
class StepReport:
    """What happened in a step; the norms and the loss are computed on private data.

    examples: drawn by the Poisson sampler; loss: mean over them (nan if none); norms (n,): the
    per-example gradient norms before clipping, float32 on the CPU, in no particular order.
    """

    examples: int
    loss: float
    norms: Tensor


UNFINISHED = StepReport(0, float("nan"), torch.zeros(0))  # of a step that is noised and goes on


def poisson_sample(examples: int, rate: float, generator: np.random.Generator | None) -> list[int]:
    """Return the positions drawn when each of `examples` is taken with probability `rate`.

    Without a generator the draw is the operating system's.
    """
    return np.flatnonzero(uniforms(examples, generator) < rate).tolist()


@final
class ClippingOptimizer(DPOptimizer):
    """Opacus's optimiser with a choice of clipping and of the noise's source.

    `generator` may be None: the noise is then the operating system's. `norms` (n,) are those of the
    last micro-batch's per-example gradients before clipping. `gradients` says where those come from
    in a `dp_step`: "hooks" or "loop". `alone`, if there is one, gives the micro-batch's per-example
    gradients from each example alone. `coordinates`, if there is one, maps lists of per-example
    gradients (n, *shape) to such of what is clipped, noised and left in `grad` in their place; it may
    depend on the parameters and on nothing else, and on each example alone. `before_noise` is called
    before a step's noise is drawn: whatever comes of the step then, it is a release.
    """

    def __init__(
        self, optimizer: torch.optim.Optimizer, clipping: str, gradients: str, **kwargs: Any
    ) -> None:
        super().__init__(optimizer, **kwargs)
        self.clipping, self.gradients = clipping, gradients
        self.norms = torch.zeros(0)
        self.alone: Callable[[], list[Tensor]] | None = None
        self.coordinates: Callable[[list[Tensor]], list[Tensor]] | None = None
        self.before_noise: Callable[[], None] = _nothing

    def clip_and_accumulate(self) -> None:
        """Add the micro-batch's sum of clipped gradients to every parameter's `summed_grad`.

        Where a gradient of a padded batch is not finite, one example or its padding may have spoilt
        the others': all are then taken from each example alone.
        """
        sums, self.norms = self._clipped(self.grad_samples)
        if self.alone is not None and not bool(self.norms.isfinite().all()):
            sums, self.norms = self._clipped(self.alone())
        for p, value in zip(self.params, sums, strict=True):
            p.summed_grad = value if p.summed_grad is None else p.summed_grad + value

    def _clipped(self, gradients: list[Tensor]) -> tuple[list[Tensor], Tensor]:
        given = gradients if self.coordinates is None else self.coordinates(gradients)
        return clipped_sums(given, self.max_grad_norm, self.clipping)

    def add_noise(self) -> None:
        """Put the noised sum into every parameter's `grad`."""
        self.before_noise()
        std = self.noise_multiplier * self.max_grad_norm
        found = noised([p.summed_grad for p in self.params], std, self.generator)
        for p, value in zip(self.params, found, strict=True):
            p.grad = value.view_as(p)


def _nothing() -> None:
    """Do nothing."""


def make_optimizer(
    optimizer: torch.optim.Optimizer,
    *,
    noise_multiplier: float,
    clip_norm: float,
    expected_batch: float,
    generator: np.random.Generator | None,
    clipping: str = "flat",
    gradients: str = "hooks",
) -> ClippingOptimizer:
    """Return Opacus's optimiser around `optimizer`.

    A step applies (sum of clipped per-example gradients + N(0, (noise_multiplier * clip_norm)^2))
    / expected_batch. `expected_batch` is public and never the size drawn. `generator` draws the
    noise and nothing else; None takes it from the operating system. The sum and its noise are added
    and rounded as `fedsvd.privacy.noise` says. `clipping` is a name in
    `fedsvd.privacy.clipping.CLIPPING`. `gradients`: "hooks" where the model carries them, "loop" to
    take examples one at a time.
    """
    return ClippingOptimizer(
        optimizer,
        clipping,
        gradients,
        noise_multiplier=noise_multiplier,
        max_grad_norm=clip_norm,
        expected_batch_size=expected_batch,
        loss_reduction="mean",
        generator=generator,
    )


def dp_step(
    optimizer: ClippingOptimizer,
    microbatches: Sequence[T] | Iterable[T],
    losses: Callable[[T], Tensor],
) -> StepReport:
    """Take one noised step over a logical batch given in micro-batches, possibly none.

    `losses(microbatch)` returns the loss of each example, (n,). With the gradients "hooks" the model
    carries the hooks; with "loop" a micro-batch is a sequence, of which one example at a time is
    given to `losses`, so that nothing but the example is in its gradient. Clipped gradients are
    summed over micro-batches and noise is added once, so the grouping does not change the step beyond
    rounding. An empty batch is a step of noise alone (and is accounted as any other).
    """
    groups = list(microbatches)
    parameters = optimizer.params
    optimizer.zero_grad(set_to_none=True)
    total, count, norms = 0.0, 0, []
    for i, group in enumerate(groups):
        each = take_microbatch(optimizer, group, losses, last=i + 1 == len(groups))
        total, count = total + float(each.sum()), count + len(each)
        norms.append(optimizer.norms.float().cpu())
    if not groups:
        for p in parameters:
            p.grad_sample = torch.zeros((0, *p.shape), dtype=p.dtype, device=p.device)
        optimizer.alone = None
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    mean = total / count if count else float("nan")
    return StepReport(count, mean, torch.cat(norms) if norms else torch.zeros(0))


def take_microbatch(
    optimizer: ClippingOptimizer, group: Any, losses: Callable[[Any], Tensor], last: bool
) -> Tensor:
    """Add a micro-batch's clipped gradients to the step's sum and return its losses (n,).

    With the `last` one the step is taken: noise is drawn and the parameters move. See `dp_step`.
    """
    take = _from_hooks if optimizer.gradients == "hooks" else _from_loop
    each = take(optimizer, group, losses)
    optimizer.signal_skip_step(do_skip=not last)
    optimizer.step()
    optimizer.zero_grad(set_to_none=True)
    return each


def _from_hooks(
    optimizer: ClippingOptimizer, group: Any, losses: Callable[[Any], Tensor]
) -> Tensor:
    """Let the hooks put per-example gradients on the parameters; return the losses (n,).

    Raises RuntimeError where hooks hold something of another pass, or give less than a gradient for
    each example.
    """
    if any(getattr(p, "_forward_counter", 0) for p in optimizer.params):
        raise RuntimeError("the hooks hold what another pass has left")
    each = losses(group)
    each.sum().backward()
    each = each.detach()
    for p in optimizer.params:
        found = getattr(p, "grad_sample", None)
        if not isinstance(found, Tensor) or len(found) != len(each):
            raise RuntimeError("the hooks gave no gradient for each example of a trained tensor")
    optimizer.alone = None
    if isinstance(group, Sequence) and len(group) > 1:
        optimizer.alone = lambda: gradients_alone(optimizer.params, group, losses)[0]
        if not bool(each.isfinite().all()):
            each = _from_loop(optimizer, group, losses)
    return each


def _from_loop(optimizer: ClippingOptimizer, group: Any, losses: Callable[[Any], Tensor]) -> Tensor:
    """Put the gradients of examples that are alone on the parameters; return the losses (n,)."""
    optimizer.alone = None
    _, each = gradients_alone(optimizer.params, group, losses)
    return each


def gradients_alone(
    parameters: Sequence[nn.Parameter], group: Sequence[Any], losses: Callable[[Any], Tensor]
) -> tuple[list[Tensor], Tensor]:
    """Return per-example gradients (n, *shape), one pass an example, and the losses (n,).

    They are plain autograd's. They are put on the parameters as `grad_sample` too, in the place of
    whatever hooks left there: Opacus's optimiser divides by the number of entries that it finds. A
    whole backward pass is taken, and not one to the parameters alone: where there are hooks, the
    lowest would not fire in that, and would keep its activations for the next pass.
    """
    rows, values = [], []
    for i in range(len(group)):
        loss = losses(group[i : i + 1])
        for p in parameters:
            p.grad = None
        loss.sum().backward()
        rows.append([torch.zeros_like(p) if p.grad is None else p.grad for p in parameters])
        values.append(loss.detach().sum())
        for p in parameters:
            p.grad = p.grad_sample = None  # type: ignore[attr-defined]
    samples = [torch.stack(column) for column in zip(*rows, strict=True)]
    for p, sample in zip(parameters, samples, strict=True):
        p.grad_sample = sample  # type: ignore[attr-defined]
    return samples, torch.stack(values)
