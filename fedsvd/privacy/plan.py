"""The privacy plan: what every client will do and how much noise that takes, before any step."""

import math
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Any

from fedsvd.errors import InputError, wrong
from fedsvd.privacy.accounting import Cost, cost
from fedsvd.privacy.bounds import rounds_bound
from fedsvd.privacy.calibration import noise_multipliers
from fedsvd.privacy.recipes import calibrated_for
from fedsvd.settings import Settings


@dataclass(frozen=True)
class ClientPlan:
    """What one client will do, and the mechanism that protects it.

    The mechanism is at most `steps_bound` Gaussian steps: of DP-SGD with unit "example", of rounds
    with unit "client". The protected unit is included in each at `accounted_rate`.

    Attributes:
        client: the id of the client.
        examples: the number of its examples; 0 if it is not known.
        sample_rate: the rate of its Poisson batches.
        expected_batch: what their sums are divided by.
        rounds_bound: the most rounds that it may take part in.
        accounted_rate: the rate of a step in the accounting.
        steps_bound: the most steps that it may take.
        noise_multiplier: sigma; 0 without privacy.
        epsilon_bound: what `steps_bound` steps cost; None without privacy.
        accountant: the one that gave `epsilon_bound`, see `fedsvd.privacy.accounting.Cost`.
        calibrated_rate: the rate that the noise was made for: `accounted_rate`, unless
            `privacy.accounting` is that of a published recipe.
        calibrated_steps: the number of steps that the noise was made for: `steps_bound`, with the
            same exception.
    """

    client: int
    examples: int
    sample_rate: float
    expected_batch: float
    rounds_bound: int
    accounted_rate: float
    steps_bound: int
    noise_multiplier: float
    epsilon_bound: float | None
    accountant: str | None
    calibrated_rate: float
    calibrated_steps: int


@dataclass(frozen=True)
class PrivacyPlan:
    """The plan of all clients.

    Attributes:
        unit: what is protected: "example", "client" or "none".
        mechanism: "dp_sgd", "client_gaussian" or "none".
        epsilon: the target; None if the noise was given instead.
        delta: the delta of the guarantee.
        clip_norm: C, the clip.
        clipping: "flat", "per_layer" or "automatic".
        accountant: the chosen accountant.
        threat_model: "server_sees_participants" or "trusted_server".
        public_counts: whether numbers of examples are public.
        secure_noise: whether noise and batches come from the operating system.
        steps_per_round: the local steps of a round.
        clients: the plan of each client, by id.
        accounting: "ours", or that of a published recipe, which lets clients exceed the target.
        gradients: how gradients of examples are taken: "hooks" or "loop"; None until the model is
            there.
    """

    unit: str
    mechanism: str
    epsilon: float | None
    delta: float | None
    clip_norm: float | None
    clipping: str | None
    accountant: str | None
    threat_model: str | None
    public_counts: bool
    secure_noise: bool
    steps_per_round: int
    clients: tuple[ClientPlan, ...]
    accounting: str = "ours"
    gradients: str | None = None

    @property
    def private(self) -> bool:
        """Whether anything is protected."""
        return self.unit != "none"

    @property
    def per_example(self) -> bool:
        """Whether clients run DP-SGD: gradients clipped per example and noised."""
        return self.unit == "example"

    @property
    def enforced(self) -> bool:
        """Whether a client that would exceed its budget sits out."""
        return self.accounting == "ours"

    @property
    def hides_clients(self) -> bool:
        """Whether only the server knows the participants, which amplifies privacy."""
        return self.threat_model == "trusted_server"

    @property
    def rounds_bound(self) -> int:
        """The most rounds of any client."""
        return max(c.rounds_bound for c in self.clients)

    def as_dict(self) -> dict[str, Any]:
        """Return the plan as JSON-ready values."""
        return asdict(self)


def noise_source(plan: PrivacyPlan) -> str:
    """Return where the noise of a run comes from, as it is told wherever its epsilon is."""
    if not plan.private:
        return "none: nothing is protected"
    if plan.secure_noise:
        return "from the operating system"
    return "from the run's seed: repeatable, do not publish this model"


def warnings_of(plan: PrivacyPlan) -> list[str]:
    """Return what a plan by a published recipe does not keep, a line each; none for one of ours."""
    if not plan.private or plan.enforced:
        return []
    assert plan.delta is not None
    found = []
    most = max(plan.clients, key=lambda c: c.epsilon_bound or 0.0)
    if plan.epsilon is not None and (most.epsilon_bound or 0.0) > plan.epsilon:
        found.append(
            f"privacy.accounting={plan.accounting} makes noise for {most.calibrated_steps} steps at "
            f"rate {most.calibrated_rate:.4g}; client {most.client} may take {most.steps_bound} at "
            f"rate {most.accounted_rate:.4g} and spend epsilon {most.epsilon_bound:.4g}, above the "
            f"target {plan.epsilon:g}; nobody sits out"
        )
    large = [c.client for c in plan.clients if plan.delta * c.examples >= 1]
    if large:
        told = ", ".join(map(str, large))
        found.append(
            f"delta {plan.delta:g} is not below 1/n of client {told}: it allows to publish one of "
            "their examples in the clear"
        )
    return found


MECHANISMS = {"example": "dp_sgd", "client": "client_gaussian", "none": "none"}


def make_plan(settings: Settings, sizes: Sequence[int]) -> PrivacyPlan:
    """Calibrate every client's noise for the most that it can be asked for.

    `sizes[k]` is client k's number of examples n_k. Sample rates are batch_size / n with n = n_k if
    `privacy.public_counts`, otherwise with the public `data.public_size` / `clients.number` for
    all, so that nothing the server sees depends on n_k. The bound on a client's steps is the bound
    on its rounds times the steps it takes in one. Raises InputError if delta is not below 1 / n_k
    for every client, a count is needed and not public, or a budget cannot be met. With
    `privacy.accounting` of a published recipe the noise is for what that assumes: see `warnings_of`.
    """
    privacy, clients = settings.privacy, settings.clients
    ours = privacy.accounting == "ours" or privacy.unit == "none"
    if ours:
        _check_delta(settings, sizes)
    counts = _counts(settings, sizes)
    rates = [min(1.0, settings.training.batch_size / n) for n in counts]
    trusted = privacy.unit == "client" and privacy.threat_model == "trusted_server"
    # A trusted server hides who took part, so every round counts for everybody, at the rate of
    # being drawn; otherwise only the rounds that a client takes part in do, at rate 1.
    most = settings.rounds if trusted else rounds_bound(clients, settings.rounds, limited=ours)
    per_round = settings.training.local_steps if privacy.unit != "client" else 1
    if privacy.unit == "client":
        accounted = [clients.per_round / clients.number if trusted else 1.0] * len(sizes)
    else:
        accounted = rates
    assumed, steps = calibrated_for(settings, accounted, most * per_round)
    noise = _noise(settings, assumed, steps)
    costs = _costs(settings, noise, accounted, most * per_round)
    planned = tuple(
        ClientPlan(
            k, n, rates[k], rates[k] * counts[k], most, accounted[k], most * per_round,
            noise[k], costs[k].epsilon if costs else None, costs[k].accountant if costs else None,
            assumed[k], steps,
        )
        for k, n in enumerate(sizes)
    )  # fmt: skip
    private = privacy.unit != "none"
    return PrivacyPlan(
        unit=privacy.unit,
        mechanism=MECHANISMS[privacy.unit],
        epsilon=privacy.epsilon if private else None,
        delta=privacy.delta if private else None,
        clip_norm=privacy.clip_norm if private else None,
        clipping=privacy.clipping if private else None,
        accountant=privacy.accountant if private else None,
        threat_model=privacy.threat_model if private else None,
        public_counts=privacy.public_counts,
        secure_noise=privacy.secure_noise and private,
        steps_per_round=per_round,
        clients=planned,
        accounting=privacy.accounting if private else "ours",
    )


def _noise(settings: Settings, rates: Sequence[float], steps: int) -> list[float]:
    """Return a noise multiplier for each client; zeros without privacy."""
    privacy = settings.privacy
    if privacy.unit == "none":
        return [0.0] * len(rates)
    if privacy.noise_multiplier is not None:
        return [privacy.noise_multiplier] * len(rates)
    assert privacy.epsilon is not None
    return noise_multipliers(privacy.epsilon, privacy.delta, rates, steps, privacy.accountant)


def _costs(
    settings: Settings, noise: Sequence[float], rates: Sequence[float], steps: int
) -> list[Cost]:
    """Return what the bound on steps costs, a client each; none without privacy."""
    privacy = settings.privacy
    if privacy.unit == "none":
        return []
    events = zip(noise, rates, strict=True)
    return [cost([(s, q, steps)], privacy.delta, privacy.accountant) for s, q in events]


def _check_delta(settings: Settings, sizes: Sequence[int]) -> None:
    privacy = settings.privacy
    if privacy.unit == "example" and privacy.delta * max(sizes) >= 1:
        k = max(range(len(sizes)), key=lambda i: sizes[i])
        raise wrong("privacy.delta", privacy.delta, f"below 1/n = {1 / sizes[k]:.3g} (client {k})")
    if privacy.unit == "client" and privacy.delta * len(sizes) >= 1:
        raise wrong(
            "privacy.delta", privacy.delta, f"below 1/clients.number = {1 / len(sizes):.3g}"
        )


def _counts(settings: Settings, sizes: Sequence[int]) -> list[float]:
    """Return the number of examples that each client's sample rate is made from."""
    if settings.privacy.public_counts:
        return [float(n) for n in sizes]
    size = settings.data.public_size
    if size is None:
        if settings.privacy.unit != "example":
            return [max(1.0, n) for n in sizes]  # rates stay inside the client
        raise InputError(
            "data.public_size: needed under privacy, as sample rates must not depend on how many "
            "examples a client holds; give about how many examples all clients hold together, or "
            "set privacy.public_counts=true to state that the counts are public"
        )
    size = min(size, settings.data.limit or math.inf)  # type: ignore[assignment]
    return [max(1.0, size / settings.clients.number)] * len(sizes)


def weighting(settings: Settings) -> str:
    """Return how clients are weighted: "examples" or "uniform"; "auto" is decided here.

    Where rates are equal for all, a client's sum already grows with what it holds.
    """
    if settings.clients.weighting != "auto":
        return settings.clients.weighting
    equal_rates = settings.data.public_size is not None and not settings.privacy.public_counts
    private = settings.privacy.unit != "none" and not settings.privacy.public_counts
    return "uniform" if private or equal_rates else "examples"
