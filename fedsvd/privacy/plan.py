"""The privacy plan: what every client will do and how much noise that takes, before any step."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedsvd.errors import wrong
from fedsvd.participation import rounds_bound
from fedsvd.privacy.accounting import epsilon, noise_multiplier
from fedsvd.settings import Settings


@dataclass(frozen=True)
class ClientPlan:
    """One client's mechanism: Poisson sampling at `sample_rate`, noise sigma * clip on the sum."""

    client: int
    examples: int
    sample_rate: float
    expected_batch: float
    rounds_bound: int
    steps_bound: int
    noise_multiplier: float  # 0 without privacy
    epsilon_bound: float | None  # what steps_bound steps cost; None without privacy


@dataclass(frozen=True)
class PrivacyPlan:
    """The plan of all clients."""

    unit: str
    epsilon: float | None
    delta: float | None
    clip_norm: float | None
    accountant: str | None
    clients: tuple[ClientPlan, ...]

    @property
    def private(self) -> bool:
        """Whether gradients are clipped per example and noised."""
        return self.unit != "none"

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values."""
        return asdict(self)


def make_plan(settings: Settings, sizes: Sequence[int]) -> PrivacyPlan:
    """Calibrate every client's noise for the most steps that it can be asked for.

    `sizes[k]` is client k's number of examples n_k; its sample rate is min(1, batch_size / n_k) and
    its bound on steps is the bound on its rounds times `training.local_steps`. Raises InputError if
    delta is not below 1 / n_k for every client, or a budget cannot be met.
    """
    privacy, training = settings.privacy, settings.training
    most = rounds_bound(settings.clients, settings.rounds)
    steps = most * training.local_steps
    private = privacy.unit != "none"
    if private and privacy.delta * max(sizes) >= 1:
        k = max(range(len(sizes)), key=lambda i: sizes[i])
        raise wrong("privacy.delta", privacy.delta, f"below 1/n = {1 / sizes[k]:.3g} (client {k})")
    clients = []
    for k, n in enumerate(sizes):
        rate = min(1.0, training.batch_size / n)
        sigma, cost = 0.0, None
        if private:
            assert privacy.epsilon is not None
            args = (privacy.delta, privacy.accountant)
            sigma = noise_multiplier(privacy.epsilon, args[0], rate, steps, args[1])
            cost = epsilon([(sigma, rate, steps)], *args)
        clients.append(ClientPlan(k, n, rate, rate * n, most, steps, sigma, cost))
    if not private:
        return PrivacyPlan("none", None, None, None, None, tuple(clients))
    return PrivacyPlan(
        privacy.unit,
        privacy.epsilon,
        privacy.delta,
        privacy.clip_norm,
        privacy.accountant,
        tuple(clients),
    )
