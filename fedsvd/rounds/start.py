"""Training on public texts before round 1."""

from collections.abc import Collection

import torch
from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsvd.errors import InputError, wrong
from fedsvd.lowrank import AdapterState
from fedsvd.settings import Settings
from fedsvd.settings.start import StartSettings
from fedsvd.strategies.base import PublicView, Strategy

NOTHING = (
    "start: with this strategy, adapter and head there is nothing that the server could train and "
    "send; choose start=none"
)


def check_start(settings: Settings, strategy: FlowerStrategy) -> None:
    """Raise InputError if there is nothing to train on, or nothing that the clients would be sent."""
    if not settings.start.active:
        return
    if settings.partition.name == "own":
        raise wrong(
            "start.name", settings.start.name, "none with partition=own: no text is the server's"
        )
    if not settings.data.public:
        raise wrong(
            "data.public", 0,
            "at least 1 with start=public: so many examples to train on, which no client then holds",
        )  # fmt: skip
    if not movable(settings, strategy):
        raise InputError(NOTHING)


def movable(settings: Settings, strategy: FlowerStrategy) -> tuple[str, ...]:
    """Return which of "A", "B", "extra" (a head, an adapter's own tensors) may train before round 1.

    Clients must be sent it: a strategy that does not broadcast A has them derive the A that the
    adapter starts from, and what it `keeps` is a client's own.
    """
    sent, kept = ("A", "B"), ()
    if isinstance(strategy, Strategy):
        sent, kept = strategy.broadcasts, strategy.keeps  # type: ignore[assignment]
    factors = [f for f in ("A", "B") if settings.adapter.name != "none" and f in sent]
    return tuple(kind for kind in (*factors, "extra") if kind not in kept)


def start_on_public(
    state: AdapterState, view: PublicView, kinds: Collection[str], told: StartSettings
) -> tuple[AdapterState, tuple[float, float]]:
    """Return the state after `start.steps` of Adam on the mean loss of the public texts.

    With it comes this loss before and after. The rate falls linearly from `start.lr` to 0. `kinds`
    are those of `movable`; of "extra" what clients train moves. Raises InputError if the state has
    nothing of them that can train.
    """
    before, trained = view.gradients(state, kinds)
    x = {n: t.detach().clone() for n, t in state.select(kinds).items() if n in trained}
    if not x:
        raise InputError(NOTHING)
    optimizer = torch.optim.Adam(list(x.values()), lr=told.lr)
    fall = torch.optim.lr_scheduler.LambdaLR(optimizer, lambda n: 1 - n / told.steps)
    for _ in range(told.steps):
        gradients = view.gradients(state.update(x), kinds)[1]
        for name, tensor in x.items():
            tensor.grad = gradients[name]
        optimizer.step()
        fall.step()
    state = state.update(x)
    return state, (before, view.gradients(state, kinds)[0])
