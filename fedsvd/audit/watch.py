"""Canaries in a run's clients, and eyes on what goes in and out of them; the run's code stays."""

from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ConfigRecord, Context, Message
from flwr.clientapp import ClientApp
from torch import Tensor

from fedsvd.audit.canaries import Canaries, Layout
from fedsvd.audit.observed import MOST_PAIRED, Observed, Release
from fedsvd.audit.probe import linear_losses, places
from fedsvd.client.rule import PREFIX
from fedsvd.client.training import learning_rate
from fedsvd.client.worker import Worker
from fedsvd.data.tokens import Tokens
from fedsvd.models.classifier import Classifier
from fedsvd.records import ARRAYS, CONFIG, arrays_of, from_record

GROUP = 4_000_000  # entries of per-example gradients held at once


@dataclass
class Watch:
    """What is being watched, and what was seen so far.

    drawn: the examples of every step of a client in a round. moved: each client's scores, summed over
    rounds; expected: their means for canaries that are in; quiet: the clients' own examples are
    drawn and have no gradient, so that a release is canaries and noise.
    """

    worker: Worker
    layout: Layout
    canaries: dict[int, Canaries]
    quiet: bool
    seen: Observed
    first: int
    now: tuple[int, int] | None = None
    drawn: dict[tuple[int, int], list[np.ndarray]] = field(default_factory=dict)
    moved: dict[int, Tensor] = field(default_factory=dict)
    expected: dict[int, Tensor] = field(default_factory=dict)

    def losses(self, rows: Sequence[int]) -> Tensor:
        """Return the losses (n,) of canaries: the linear functions with their gradients."""
        assert self.now is not None
        own = self.canaries[self.now[0]]
        which = torch.as_tensor(np.asarray(rows) - int(own.rows[0]))
        named = self.worker.model.trainable()
        gradients = own.gradients(which, self.layout, self.worker.settings.privacy.clip_norm)
        wanted = {}
        for name, p in named.items():
            if name in gradients:
                corner = tuple(slice(n) for n in p.shape)
                wanted[name] = gradients[name][(slice(None), *corner)].to(p.dtype)
            else:
                wanted[name] = p.new_zeros((len(rows), *p.shape))
        return linear_losses(places(self.worker.model, named), wanted)

    def answered(self, message: Message, reply: Message) -> None:
        """Take the scores of a client's canaries from its reply, and what is left without them."""
        assert self.now is not None
        client, round = self.now
        if client not in self.canaries:
            return
        if reply.has_error() or ARRAYS not in reply.content.array_records:
            return
        worker, planned = self.worker, self.worker.plan.clients[client]
        settings = worker.settings
        received = from_record(arrays_of(message), worker.device)
        sent = from_record(arrays_of(reply), worker.device)
        start = {**worker.initial.tensors(), **received}
        lr = learning_rate(settings.training, round, settings.rounds)
        scale = planned.expected_batch / (lr * settings.privacy.clip_norm)
        moved = {
            name: (start[name][tuple(slice(n) for n in t.shape)].double() - t.double()) * scale
            for name, t in sent.items()
        }
        release, covers = self.layout.flat(moved)
        named = worker.model.trainable()
        _, trains = self.layout.flat({n: p for n, p in named.items() if n in self.layout.names})
        steps = self.drawn.get(self.now, [])
        self._score(release.float(), covers, trains, len(named), steps)
        self.seen.steps[self.now] = self.seen.steps.get(self.now, 0) + len(steps)

    def _score(
        self, release: Tensor, covers: Tensor, trains: Tensor, tensors: int, steps: list[np.ndarray]
    ) -> None:
        assert self.now is not None
        client, round = self.now
        settings, planned = self.worker.settings, self.worker.plan.clients[client]
        own = self.canaries[client]
        added = own.contributions(
            settings.privacy.clipping, settings.privacy.clip_norm, trains, covers, tensors
        )
        norms = added.norm(dim=1)
        scores = (added / norms.clamp(min=1e-30).unsqueeze(1)) @ release[own.at]
        counts = torch.zeros(len(own.rows), device=release.device)
        for step in steps:
            places = step[step >= self.first] - int(own.rows[0])
            counts[torch.as_tensor(places)] += 1
        variance = planned.noise_multiplier**2 * len(steps)
        expected = counts * norms
        self.seen.shift.add(_numpy(scores), _numpy(expected), variance)
        zero = torch.zeros_like(scores)
        self.moved[client] = self.moved.get(client, zero) + scores
        mean = norms * planned.sample_rate * len(steps)
        self.expected[client] = self.expected.get(client, zero) + mean
        left = release.clone()
        left[own.at] -= counts @ added
        some = left[:: max(1, -(-len(left) // MOST_PAIRED))]
        self.seen.releases.append(
            Release(
                client, round, int(covers.sum()), float((left[covers].double() ** 2).sum()),
                variance, _numpy(some).astype(np.float32),
            )
        )  # fmt: skip


def _numpy(values: Tensor) -> np.ndarray:
    return cast(np.ndarray, values.double().cpu().numpy())


class WatchedTokens(Tokens):
    """A task's tokens with canaries behind its rows, which go into micro-batches of their own."""

    def __init__(self, tokens: Tokens, watch: Watch) -> None:
        count = sum(len(c.rows) for c in watch.canaries.values())
        # A token each, so that a canary has a length and a text as any example.
        columns = {
            name: [*column, *torch.zeros(count, 1, dtype=torch.int64)]
            for name, column in tokens.columns.items()
        }
        labels, ones = tokens.labels, torch.ones(count, dtype=torch.int64)
        lengths = torch.cat([tokens.lengths, ones])
        super().__init__(columns, torch.cat([labels, 0 * ones]), lengths, tokens.pad_id)
        object.__setattr__(self, "watch", watch)

    def microbatches(self, rows: Sequence[int], budget: int) -> Iterator[list[int]]:
        """Yield the micro-batches of the clients' examples, unless they are quiet, then canaries'."""
        watch: Watch = self.watch  # type: ignore[attr-defined]
        if watch.now is None:
            yield from super().microbatches(rows, budget)
            return
        drawn = np.asarray(rows, dtype=np.int64)
        watch.drawn.setdefault(watch.now, []).append(drawn)
        if not watch.quiet:
            yield from super().microbatches(drawn[drawn < watch.first].tolist(), budget)
        canaries = sorted(drawn[drawn >= watch.first].tolist())
        group = max(1, GROUP // watch.layout.size)
        for i in range(0, len(canaries), group):
            yield canaries[i : i + group]


class WatchedApp(ClientApp):
    """A ClientApp whose training messages are watched on their way in and out.

    What a strategy asks of steps after the noise (`LocalRule`) is taken out of the message, so that a
    release is a sum of contributions and noise.
    """

    def __init__(self, app: ClientApp, watch: Watch) -> None:
        super().__init__()
        self._app, self._watch = app, watch

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer as the app does."""
        if message.metadata.message_type != "train":
            return self._app(message, context)
        config = message.content.config_records[CONFIG]
        plain = {k: v for k, v in config.items() if not k.startswith(PREFIX)}
        message.content.config_records[CONFIG] = ConfigRecord(plain)
        client, round = (
            int(context.node_config["partition-id"]),
            int(cast(Any, plain["server-round"])),
        )
        self._watch.now = (client, round)
        try:
            reply = self._app(message, context)
            self._watch.answered(message, reply)
        finally:
            self._watch.now = None
        return reply


@contextmanager
def planted(watch: Watch) -> Iterator[None]:
    """Give the worker's clients their canaries, and take them away in the end."""
    worker = watch.worker
    model = worker.model
    before = (worker.parts, worker.tokens, model.penalty)
    manifold = isinstance(model, Classifier) and model.on_manifold
    real = worker.losses

    def losses(rows: Sequence[int], *args: Any, **how: Any) -> Tensor:
        if watch.now is not None and len(rows) and int(rows[0]) >= watch.first:
            return watch.losses(rows)
        return real(rows, *args, **how)

    worker.parts = [
        np.concatenate([part, watch.canaries[k].rows[watch.canaries[k].inside]])
        if k in watch.canaries
        else part
        for k, part in enumerate(worker.parts)
    ]
    worker.tokens = WatchedTokens(worker.tokens, watch)
    # What the noised gradient alone decides is left out, so that a release is a sum with its noise.
    model.penalty = None
    if isinstance(model, Classifier):
        model.on_manifold = False
    worker.losses = losses  # type: ignore[method-assign]
    try:
        yield
    finally:
        del worker.losses
        worker.parts, worker.tokens, model.penalty = before
        if isinstance(model, Classifier):
            model.on_manifold = manifold
