"""Client-level privacy: the server releases a noised sum of clipped updates, and nothing else."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import torch
from torch import Tensor

from fedsvd.errors import wrong
from fedsvd.privacy.clipping import clipped_sums
from fedsvd.privacy.noise import noised
from fedsvd.settings import Settings


@dataclass(frozen=True)
class ClientMechanism:
    """The Gaussian mechanism on a round's updates, and its state: the current `clip_norm`.

    noise_multiplier: z, of the whole release. expected_clients: m, the fixed divisor. With a
    `quantile` the clip follows that quantile of the updates' norms, at the rate `clip_rate`, from a
    count with noise of standard deviation `clip_noise`; the update's share of the noise then grows
    so that both together are one mechanism of multiplier z.
    """

    clip_norm: float
    noise_multiplier: float
    expected_clients: float
    clipping: str = "flat"
    quantile: float | None = None
    clip_rate: float = 0.2
    clip_noise: float = 0.0

    @property
    def update_noise(self) -> float:
        """The multiplier of the noise on the sum of updates.

        (z^-2 - (2 clip_noise)^-2)^-1/2: theorem 1 of Andrew et al., NeurIPS 2021 (arXiv 1905.03871).
        """
        if self.quantile is None:
            return self.noise_multiplier
        left = self.noise_multiplier**-2 - (2 * self.clip_noise) ** -2
        return 1 / math.sqrt(left)


def make_mechanism(settings: Settings, noise_multiplier: float) -> ClientMechanism:
    """Return the mechanism of a run's first round; InputError if the count's noise is too small."""
    privacy, clients = settings.privacy, settings.clients
    m = clients.number if clients.participation == "all" else clients.per_round
    # Its authors use m / 20; it must exceed z / 2 or nothing is left for the updates.
    count_noise = privacy.clip_noise or max(m / 20, noise_multiplier)
    if privacy.clip_quantile is not None and 2 * count_noise <= noise_multiplier:
        raise wrong(
            "privacy.clip_noise",
            count_noise,
            f"above half the noise multiplier {noise_multiplier:.4g}",
        )
    return ClientMechanism(
        privacy.clip_norm, noise_multiplier, float(m), privacy.clipping,
        privacy.clip_quantile, privacy.clip_rate, count_noise,
    )  # fmt: skip


def release(
    updates: Sequence[Mapping[str, Tensor]],
    base: Mapping[str, Tensor],
    mechanism: ClientMechanism,
    generator: np.random.Generator | None,
) -> tuple[dict[str, Tensor], ClientMechanism, Tensor]:
    """Return the noised mean of the clients' tensors, the next mechanism, and the norms (k,).

    The mean is base + (sum over clients of clip(update - base) + N(0, (noise C)^2)) / m, also
    without any update. A client moves the sum by at most C and the count by at most 1/2 around its
    middle. The sum and its noise are added and rounded as `fedsvd.privacy.noise` says; `generator`
    None draws from the operating system. The norms are of the raw updates, private, for diagnostics.
    """
    names = list(base)
    deltas = [torch.stack([u[n] - base[n] for u in updates]) if updates else
              base[n].new_zeros((0, *base[n].shape)) for n in names]  # fmt: skip
    C, m = mechanism.clip_norm, mechanism.expected_clients
    sums, norms = clipped_sums(deltas, C, mechanism.clipping)
    std = mechanism.update_noise * C
    released = noised(sums, std, generator)
    mean = {n: base[n] + total / m for n, total in zip(names, released, strict=True)}
    return mean, _adapt(mechanism, norms, generator), norms


def _adapt(
    mechanism: ClientMechanism, norms: Tensor, generator: np.random.Generator | None
) -> ClientMechanism:
    """Return the mechanism with C moved towards the quantile: C exp(-rate (b - quantile))."""
    if mechanism.quantile is None:
        return mechanism
    below = (norms <= mechanism.clip_norm).double() - 0.5
    count = float(noised([below.sum()], mechanism.clip_noise, generator)[0])
    share = count / mechanism.expected_clients + 0.5
    step = math.exp(-mechanism.clip_rate * (share - mechanism.quantile))
    return replace(mechanism, clip_norm=mechanism.clip_norm * step)
