"""A run with canaries in place of its clients' updates, unit client: the server adds the noise.

Any update of a client is clipped, so a canary is an update of its own direction, far longer than the
clip; a coin a client and round says whether it is sent, or an update of zero. Local training is no
part of the mechanism: clients draw their batches and have nothing to learn from.
"""

import math
from collections.abc import Callable, Iterable
from dataclasses import dataclass, field
from typing import Any, cast

import numpy as np
import torch
from flwr.app import ArrayRecord, Context, Message, MetricRecord
from flwr.clientapp import ClientApp
from torch import Tensor

from fedsvd.audit.canaries import Canaries, Layout, make_canaries
from fedsvd.audit.observed import MOST_PAIRED, Batches, Observed, Release
from fedsvd.audit.pipeline import rounds_run, sent_layout
from fedsvd.audit.watch import Watch, WatchedApp, planted
from fedsvd.client.app import make_client_app
from fedsvd.client.worker import get_worker
from fedsvd.engines.inline import InlineGrid
from fedsvd.experiment import prepare
from fedsvd.randomness import Purpose, numpy_stream, torch_stream
from fedsvd.records import ARRAYS, CONFIG, arrays_of, from_record, to_record
from fedsvd.rounds.run import Run
from fedsvd.settings import Settings
from fedsvd.strategies.build import build_strategy

SERVER = -1


@dataclass
class ServerWatch:
    """The canaries of the coming release, and the scores of those before it."""

    settings: Settings
    layout: Layout
    model: Canaries  # one canary, whose entries all use
    seen: Observed
    run: Run | None = None
    clip: float = 0.0
    sent: list[tuple[Tensor, bool]] = field(default_factory=list)
    drawn: list[np.ndarray] = field(default_factory=list)
    inside: list[float] = field(default_factory=list)
    outside: list[float] = field(default_factory=list)
    theory: list[float] = field(default_factory=list)

    def sending(self, client: int, round: int, reply: Message) -> None:
        """Put a canary, or nothing, in place of a client's update."""
        if reply.has_error() or ARRAYS not in reply.content.array_records:
            return
        generator = torch_stream(self.settings.seed, Purpose.AUDIT, client, round)
        direction = torch.randn(len(self.model.at), generator=generator).to(self.model.at.device)
        direction /= direction.norm()
        coin = numpy_stream(self.settings.seed, Purpose.AUDIT, client, round, "coin").random() < 0.5
        self.sent.append((direction, coin))
        if coin:
            device = self.model.at.device
            canary = _of(self.model, direction).gradients(
                torch.zeros(1, dtype=torch.int64), self.layout, self.clip
            )
            arrays = from_record(arrays_of(reply), device)
            moved = {
                n: t + canary[n][0].to(t.dtype) if n in canary else t for n, t in arrays.items()
            }
            reply.content.array_records[ARRAYS] = to_record(moved)

    def released(self, round: int, mean: Message) -> None:
        """Take the scores of a round's canaries from what the server releases."""
        run = self.run
        assert run is not None
        assert run.client_level is not None
        base, privacy = run.state.tensors(), self.settings.privacy
        scale = run.client_level.expected_clients / self.clip
        moved = {
            n: (t.double() - base[n].double()) * scale
            for n, t in from_record(arrays_of(mean), run.worker.device).items()
        }
        release, covers = self.layout.flat(moved)
        release, noise = release.float(), run.client_level.update_noise
        left = release.clone()
        for direction, coin in self.sent:
            added = _of(self.model, direction).contributions(
                privacy.clipping, self.clip, covers, covers, len(moved)
            )[0]
            norm = float(added.norm())
            score = float((added / norm) @ release[self.model.at])
            (self.inside if coin else self.outside).append(score / noise)
            if coin:
                self.theory.append(norm / noise)
                left[self.model.at] -= added
                self.seen.shift.add(np.array([score]), np.array([norm]), noise**2)
        some = left[:: max(1, -(-len(left) // MOST_PAIRED))].cpu().numpy()
        energy = float((left[covers].double() ** 2).sum())
        self.seen.releases.append(
            Release(SERVER, round, int(covers.sum()), energy, noise**2, some)
        )  # fmt: skip
        self.sent, self.clip = [], run.client_level.clip_norm


def _of(model: Canaries, direction: Tensor) -> Canaries:
    return Canaries(
        model.client, model.rows, model.inside, direction.unsqueeze(0), model.at, model.tensor
    )


class _CanaryApp(ClientApp):
    """A ClientApp whose updates are canaries."""

    def __init__(self, app: ClientApp, watch: ServerWatch) -> None:
        super().__init__()
        self._app, self._watch = app, watch

    def __call__(self, message: Message, context: Context) -> Message:
        """Answer with a canary, or with an update of zero."""
        config: Any = message.content.config_records[CONFIG]
        reply = self._app(message, context)
        client = int(context.node_config["partition-id"])
        self._watch.sending(client, int(config["server-round"]), reply)
        return reply


def server_with_canaries(
    settings: Settings, rounds: int | None = None, tell: Callable[[str], None] = lambda _: None
) -> Observed:
    """Run `rounds` rounds (default: all) of the audited run, unit client; return what was seen."""
    worker = get_worker(settings)
    strategy: Any = build_strategy(settings.strategy)
    layout, seen = sent_layout(worker, strategy), Observed(worker.plan, True)
    one = make_canaries(layout, SERVER, 1, 0, settings.seed, worker.device)
    watch = ServerWatch(settings, layout, one, seen)
    quiet = Watch(worker, layout, {}, True, Observed(worker.plan, True), len(worker.tokens.labels))
    app = _CanaryApp(WatchedApp(make_client_app(settings), quiet), watch)
    real = strategy.aggregate_train

    def aggregate_train(
        round: int, replies: Iterable[Message]
    ) -> tuple[ArrayRecord | None, MetricRecord | None]:
        given = list(replies)
        for mean in given:
            watch.released(round, mean)
        return cast(tuple[ArrayRecord | None, MetricRecord | None], real(round, given))

    strategy.aggregate_train = aggregate_train
    run = prepare(settings, strategy, InlineGrid(app, settings.clients.number))
    watch.run, watch.clip = run, settings.privacy.clip_norm
    with planted(quiet):
        rounds_run(run, settings.rounds if rounds is None else rounds, tell)
    _finish(watch, run, quiet)
    return seen


def _finish(watch: ServerWatch, run: Run, quiet: Watch) -> None:
    """Enter who took part and what the ledger says."""
    seen, plan = watch.seen, run.worker.plan
    hidden = plan.threat_model == "trusted_server"
    seen.rounds = run.state.round
    took = {r: sorted(k for k, at in quiet.drawn if at == r) for r in range(1, seen.rounds + 1)}
    everyone = list(range(len(plan.clients)))
    seen.steps = {(k, r): 1 for r, who in took.items() for k in (everyone if hidden else who)}
    rate = plan.clients[0].accounted_rate
    drawn = [np.asarray(who, dtype=np.int64) for who in took.values()]
    if hidden:
        seen.batches = [Batches("clients", len(everyone), rate, drawn)]
    else:  # a round's canaries are told one by one, and rounds of plain Gaussian steps add up
        most = max((sum(k == c for k, _ in seen.steps) for c in everyone), default=0)
        seen.composed = math.sqrt(most)
    seen.inside, seen.outside = np.asarray(watch.inside), np.asarray(watch.outside)
    seen.theory = float(np.mean(watch.theory)) if watch.theory else 0.0
    seen.ledger = {k: list(events) for k, events in run.ledger.events.items()}
    spent = run.ledger.epsilon_max()
    seen.epsilon = math.inf if spent is None else spent
