"""`training.microbatch_tokens=auto`: a run's token budget, measured before round 0 or the default."""

from collections import OrderedDict
from collections.abc import Hashable, Iterator
from contextlib import contextmanager

import torch

from fedsvd.client.budget import Measured, choose, measure
from fedsvd.client.worker import choose_device, choose_precision, get_worker, with_budget
from fedsvd.factors import factors_of
from fedsvd.settings import Settings
from fedsvd.settings.clients import AUTO, DEFAULT_BUDGET
from fedsvd.terminal import say

MOST = 64  # choices that a process remembers

_known: OrderedDict[Hashable, int] = OrderedDict()


def forget() -> None:
    """Remember no choice any more."""
    _known.clear()


def settled(settings: Settings) -> Settings:
    """Return the settings with a number in place of `auto`; others as they are.

    The number is chosen on the model that will train, in this process, and said in a line. A process
    that has chosen one for the same model, data, precision and threads does not measure again.
    The model that was built for it is that of the run.
    """
    if settings.training.microbatch_tokens != AUTO:
        return settings
    given = settings.with_budget(DEFAULT_BUDGET)
    threads, key = threads_of(settings), likeness(given)
    if key in _known:
        _known.move_to_end(key)
        say(f"{NAME}={AUTO}: {_known[key]}, as this process has measured before")
        return settings.with_budget(_known[key])
    worker = get_worker(given, anew=True)
    with _threads(threads):
        found = measure(worker, at_once(settings))
    chosen = choose(found.seconds)
    if found.seconds:
        _known[key] = chosen
        while len(_known) > MOST:
            _known.popitem(last=False)
    say(told(chosen, found))
    return with_budget(worker, chosen).settings


NAME = "training.microbatch_tokens"


def told(chosen: int, found: Measured) -> str:
    """Return the line about a choice."""
    if not found.seconds:
        return (
            f"{NAME}={AUTO}: {chosen}, the default: the local steps take about {found.steps:.0f} s, "
            "in which no other would gain what measuring takes"
        )
    base = found.seconds[DEFAULT_BUDGET]
    ratios = ", ".join(f"{c}: {s / base:.2f}" for c, s in sorted(found.seconds.items()))
    return f"{NAME}={AUTO}: {chosen}, by a batch's time over that with {DEFAULT_BUDGET} ({ratios})"


def likeness(settings: Settings) -> Hashable:
    """Return all of the settings, and of this process, that a choice follows from."""
    training, privacy = settings.training, settings.privacy
    device = choose_device(settings.device)
    return (
        settings.task, repr((settings.model, settings.adapter, settings.data, settings.partition)),
        settings.clients.number, factors_of(settings), str(device),
        choose_precision(training.precision, device), threads_of(settings),
        training.batch_size, training.gradient_checkpointing, training.cache,
        privacy.unit, privacy.gradients, privacy.clipping, settings.engine.name,
    )  # fmt: skip


def at_once(settings: Settings) -> int:
    """Return how many clients may train at a time, beside each other on one machine."""
    if settings.engine.name != "ray":
        return 1
    return settings.engine.workers or settings.clients.per_round


def threads_of(settings: Settings) -> int:
    """Return the threads of PyTorch in a process of clients."""
    if settings.engine.name == "ray":
        from fedsvd.engines import ray  # slow to import

        return ray.threads_of(settings.engine)
    return settings.engine.threads or torch.get_num_threads()


@contextmanager
def _threads(number: int) -> Iterator[None]:
    before = torch.get_num_threads()
    torch.set_num_threads(number)
    try:
        yield
    finally:
        torch.set_num_threads(before)
