"""One step of DP-SGD on what trains of a model, with Opacus's hooks and optimiser."""

from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar, final

import numpy as np
import torch
from opacus.grad_sample import GradSampleHooks
from opacus.optimizers import DPOptimizer
from torch import Tensor, nn

from fedsvd.privacy.clipping import clipped_sums
from fedsvd.privacy.noise import noised
from fedsvd.randomness import uniforms

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


def attach_hooks(model: nn.Module) -> GradSampleHooks:
    """Attach Opacus's per-example gradient hooks to everything in `model` that trains.

    The model is not wrapped: its parameter names, its methods and its memory stay as they are.
    """
    return GradSampleHooks(model, loss_reduction="sum", strict=False)


def poisson_sample(examples: int, rate: float, generator: np.random.Generator | None) -> list[int]:
    """Return the positions drawn when each of `examples` is taken with probability `rate`.

    Without a generator the draw is the operating system's.
    """
    return np.flatnonzero(uniforms(examples, generator) < rate).tolist()


@final
class ClippingOptimizer(DPOptimizer):
    """Opacus's optimiser with a choice of clipping and of the noise's source.

    `generator` may be None: the noise is then the operating system's. `norms` (n,) are those of the
    last micro-batch's per-example gradients before clipping.
    """

    def __init__(self, optimizer: torch.optim.Optimizer, clipping: str, **kwargs: Any) -> None:
        super().__init__(optimizer, **kwargs)
        self.clipping = clipping
        self.norms = torch.zeros(0)

    def clip_and_accumulate(self) -> None:
        """Add the micro-batch's sum of clipped gradients to every parameter's `summed_grad`."""
        sums, self.norms = clipped_sums(self.grad_samples, self.max_grad_norm, self.clipping)
        for p, value in zip(self.params, sums, strict=True):
            p.summed_grad = value if p.summed_grad is None else p.summed_grad + value

    def add_noise(self) -> None:
        """Put the noised sum into every parameter's `grad`."""
        std = self.noise_multiplier * self.max_grad_norm
        found = noised([p.summed_grad for p in self.params], std, self.generator)
        for p, value in zip(self.params, found, strict=True):
            p.grad = value.view_as(p)


def make_optimizer(
    optimizer: torch.optim.Optimizer,
    *,
    noise_multiplier: float,
    clip_norm: float,
    expected_batch: float,
    generator: np.random.Generator | None,
    clipping: str = "flat",
) -> ClippingOptimizer:
    """Return Opacus's optimiser around `optimizer`.

    A step applies (sum of clipped per-example gradients + N(0, (noise_multiplier * clip_norm)^2))
    / expected_batch. `expected_batch` is public and never the size drawn. `generator` draws the
    noise and nothing else; None takes it from the operating system. The sum and its noise are added
    and rounded as `fedsvd.privacy.noise` says. `clipping` is a name in
    `fedsvd.privacy.clipping.CLIPPING`.
    """
    return ClippingOptimizer(
        optimizer,
        clipping,
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

    `losses(microbatch)` returns the loss of each example, (n,), on the model that carries the
    hooks. Clipped gradients are summed over micro-batches and noise is added once, so the grouping
    does not change the step beyond rounding. An empty batch is a step of noise alone (and is
    accounted as any other).
    """
    groups = list(microbatches)
    parameters = optimizer.params
    optimizer.zero_grad(set_to_none=True)
    total, count, norms = 0.0, 0, []
    for i, group in enumerate(groups):
        each = losses(group)
        each.sum().backward()
        total, count = total + float(each.detach().sum()), count + len(each)
        optimizer.signal_skip_step(do_skip=i + 1 < len(groups))
        optimizer.step()
        norms.append(optimizer.norms.float().cpu())
        optimizer.zero_grad(set_to_none=True)
    if not groups:
        for p in parameters:
            p.grad_sample = torch.zeros((0, *p.shape), dtype=p.dtype, device=p.device)
        optimizer.step()
        optimizer.zero_grad(set_to_none=True)
    mean = total / count if count else float("nan")
    return StepReport(count, mean, torch.cat(norms) if norms else torch.zeros(0))
