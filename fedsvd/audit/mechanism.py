"""Thousands of replays of the real mechanism on stub gradients: what one step does with a canary.

Half of the canaries are in. Every one has a direction of its own, so a replay gives a score of each.
"""

import math
from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from fedsvd.adapters.linear import FactorLinear
from fedsvd.audit.probe import linear_losses, places, split
from fedsvd.privacy import client_level, dpsgd
from fedsvd.privacy.client_level import ClientMechanism
from fedsvd.privacy.plan import PrivacyPlan
from fedsvd.randomness import Purpose, numpy_stream
from fedsvd.rounds.participation import participants
from fedsvd.settings import Settings

SIZE = 100.0  # a canary's norm before clipping, in clips
CANARIES = 512  # directions of a replay; as many are in as are held out
WIDTH, DEPTH = 16, 2 * CANARIES // 16
TENSORS = ("first", "second")

# Given who is in the batch, by direction, what a step releases along all directions, in clips.
Step = Callable[[np.ndarray, int], np.ndarray]
Sampler = Callable[[int], np.ndarray]


@dataclass(frozen=True)
class Replays:
    """What the replays showed; scores are in clips.

    drawn: canaries that were drawn, of `offered`. mean: of the scores of those; deviation: of the
    scores of held-out ones; held_out: (replays, CANARIES). repeated: the largest correlation of
    held-out scores in two replays, of `pairs`.
    """

    replays: int
    offered: int
    drawn: int
    mean: float
    deviation: float
    held_out: np.ndarray
    repeated: float
    pairs: int

    @property
    def rate(self) -> float:
        """The share of offered canaries that was drawn."""
        return self.drawn / self.offered


def replay(sample: Sampler, step: Step, replays: int) -> Replays:
    """Return what `replays` draws and steps show."""
    offered = drawn = 0
    total = 0.0
    out = np.empty((replays, CANARIES))
    for i in range(replays):
        inside = sample(i)
        offered, drawn = offered + CANARIES, drawn + len(inside)
        released = step(inside, i)
        total += float(released[inside].sum())
        out[i] = released[CANARIES:]
    some = out[: min(replays, 400)]
    norms = np.linalg.norm(some, axis=1, keepdims=True)
    unit = some / np.where(norms > 0, norms, 1)
    alike = np.triu(unit @ unit.T, 1)
    return Replays(
        replays, offered, drawn, total / max(drawn, 1), float(np.sqrt((out**2).mean())), out,
        float(np.abs(alike).max()), len(some) * (len(some) - 1) // 2,
    )  # fmt: skip


class Stub(nn.Module):
    """Two trained tensors of the same shape, without data; a canary moves an entry of both."""

    def __init__(self) -> None:
        super().__init__()
        self.first = FactorLinear(WIDTH, DEPTH, False)
        self.second = FactorLinear(WIDTH, DEPTH, False)


class ExampleStep:
    """DP-SGD's step as local training takes it: hooks, clipping, noise, division, SGD."""

    def __init__(self, settings: Settings, noise: float) -> None:
        self.settings, self.noise = settings, noise
        self.model = Stub()
        self.hooks = dpsgd.attach_hooks(self.model)
        named = dict(self.model.named_parameters())
        self.places = places(self.model, named)
        self.layout = [(name, p.shape) for name, p in named.items()]
        self.parameters = list(named.values())

    def released(self, examples: list[Tensor], replay: int) -> Tensor:
        """Return the released sum (2 entries for every direction) over groups of examples, in clips.

        `examples` are gradients (n, 2 * directions), in clips, a tensor for each micro-batch.
        """
        privacy = self.settings.privacy
        batch = 8.0
        optimizer = dpsgd.make_optimizer(
            torch.optim.SGD(self.parameters, lr=batch / privacy.clip_norm),
            noise_multiplier=self.noise,
            clip_norm=privacy.clip_norm,
            expected_batch=batch,
            generator=noise_stream(self.settings, replay),
            clipping=privacy.clipping,
        )
        with torch.no_grad():
            for p in self.parameters:
                p.zero_()

        def losses(group: Tensor) -> Tensor:
            return linear_losses(self.places, split(group * privacy.clip_norm, self.layout))

        dpsgd.dp_step(optimizer, examples, losses)
        return -torch.cat([p.detach().flatten() for p in self.parameters])

    def __call__(self, inside: np.ndarray, replay: int) -> np.ndarray:
        """Return the scores of all directions with the canaries `inside` in the batch."""
        examples = [canaries(inside)] if len(inside) else []
        return scores(self.released(examples, replay))


class ClientStep:
    """The server's release as a round makes it: clipping of whole updates, noise, fixed divisor."""

    def __init__(self, settings: Settings, mechanism: ClientMechanism) -> None:
        self.settings, self.mechanism = settings, mechanism

    def released(self, examples: list[Tensor], replay: int) -> Tensor:
        """Return the released sum over clients with the given updates, in clips."""
        base = dict.fromkeys(TENSORS, torch.zeros(2 * CANARIES))
        clip = self.mechanism.clip_norm
        updates = [
            dict(zip(TENSORS, row.split(2 * CANARIES), strict=True))
            for group in examples
            for row in group * clip
        ]
        generator = noise_stream(self.settings, replay)
        mean, _, _ = client_level.release(updates, base, self.mechanism, generator)
        return torch.cat([mean[n] for n in TENSORS]) * self.mechanism.expected_clients / clip

    def __call__(self, inside: np.ndarray, replay: int) -> np.ndarray:
        """Return the scores of all directions with the canaries `inside` among the clients."""
        return scores(self.released([canaries(inside)] if len(inside) else [], replay))


def canaries(which: np.ndarray, size: float = SIZE) -> Tensor:
    """Return the gradients (n, 4 * CANARIES) of canaries, of norm `size`, half in either tensor."""
    rows = torch.zeros(len(which), 4 * CANARIES)
    at = torch.as_tensor(which)
    index = torch.arange(len(which))
    rows[index, at] = rows[index, at + 2 * CANARIES] = size / math.sqrt(2)
    return rows


def scores(released: Tensor) -> np.ndarray:
    """Return the part of a release along every direction, (2 * CANARIES,) float64."""
    first, second = released.double().split(2 * CANARIES)
    return ((first + second) / math.sqrt(2)).numpy()


def noise_stream(settings: Settings, replay: int) -> np.random.Generator | None:
    """Return a replay's stream of noise, or None where it comes from the operating system."""
    if settings.privacy.secure_noise:
        return None
    return numpy_stream(settings.seed, Purpose.NOISE, "audit", replay)


def poisson(settings: Settings, rate: float) -> Sampler:
    """Return what draws the canaries of a replay as local training draws its examples."""

    def sample(replay: int) -> np.ndarray:
        generator = None
        if not settings.privacy.secure_noise:
            generator = numpy_stream(settings.seed, Purpose.SAMPLING, "audit", replay)
        return np.asarray(dpsgd.poisson_sample(CANARIES, rate, generator), dtype=np.int64)

    return sample


def clients_drawn(settings: Settings, plan: PrivacyPlan) -> Sampler:
    """Return what draws the canaries of a replay as rounds draw clients; all where this is seen."""
    if plan.threat_model != "trusted_server":
        return lambda replay: np.arange(CANARIES)
    number = settings.clients.number
    draws = math.ceil(CANARIES / number)  # rounds, so that every canary has the place of a client

    def sample(replay: int) -> np.ndarray:
        found: list[int] = []
        for part in range(draws):
            round, taken = 1 + replay * draws + part, [0] * number
            drawn = participants(settings.clients, 1, settings.seed, round, taken)
            found += [part * number + k for k in drawn.clients]
        return np.asarray([k for k in found if k < CANARIES], dtype=np.int64)

    return sample


def largest_move(step: ExampleStep | ClientStep) -> tuple[float, str]:
    """Return how far one more example moves a noiseless step at most, in clips, and by which case.

    Every case adds a hostile example to others: far longer than the clip, along or against them,
    within one tensor, not finite, or shorter than the clip.
    """
    generator = torch.Generator().manual_seed(0)
    ordinary = torch.randn(6, 4 * CANARIES, generator=generator)
    ordinary *= (torch.rand(6, 1, generator=generator) * 3) / ordinary.norm(dim=1, keepdim=True)
    axis = canaries(np.array([3]), 1.0)
    one_tensor = torch.zeros_like(axis)
    one_tensor[0, 3] = 1.0
    others = {"nobody": ordinary[:0], "ordinary ones": ordinary, "one against it": -SIZE * axis}
    added = {
        "of norm 100 C": SIZE * axis, "of norm C / 2": 0.5 * axis, "of norm 1e12 C": 1e12 * axis,
        "in one tensor": SIZE * one_tensor, "of infinite norm": math.inf * axis,
        "that is no number": math.nan * axis,
    }  # fmt: skip
    worst, case = 0.0, "none"
    for who, batch in others.items():
        for what, example in added.items():
            example = torch.where(example.isnan() & (axis == 0), 0, example)
            for groups in ([torch.cat([batch, example])], [batch, example]):
                before = step.released([batch] if len(batch) else [], 0)
                after = step.released([g for g in groups if len(g)], 0)
                move = float((after - before).double().norm())
                move = move if math.isfinite(move) else math.inf
                if move > worst:
                    worst, case = move, f"an example {what} beside {who}"
    return worst, case
