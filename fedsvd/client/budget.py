"""What a micro-batch of each size takes on this machine: a local step's work on random tokens.

Nothing of a client's is in it. The texts have random tokens and the length of public texts, or of the
validation part, whose rows are not protected (docs/data_privacy.md).
"""

import math
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from typing import final

import torch
from torch import Tensor

from fedsvd.client.dropout import keys_of_step, own_losses
from fedsvd.client.gradients import undisturbed
from fedsvd.client.probe import SEED, random_tokens
from fedsvd.client.worker import Worker
from fedsvd.data.tokens import Tokens
from fedsvd.live import Live
from fedsvd.machine import resident, room
from fedsvd.privacy.dpsgd import make_optimizer, take_microbatch
from fedsvd.randomness import Purpose, numpy_stream
from fedsvd.settings.clients import DEFAULT_BUDGET

POWERS = tuple(2**k for k in range(9, 15))  # 512 to 16384 tokens
PASSES = 3  # at least, over all candidates: one to warm up, two that count
SECONDS = 3.0  # that measuring may take, but
SHARE = 0.02  # of the time of all local steps at most,
LONG = 0.005  # and this share of it in long runs of large models
MARGIN = 0.05  # of the best time, within which noise must not move the bits of a run
ROOM = 0.5  # of the memory that is free, which a micro-batch may take


@final
@dataclass(frozen=True)
class Measured:
    """Seconds of a batch at each budget; empty where there was nothing to gain by measuring.

    `steps`: seconds of a run's local steps with the default budget, as a first look has it.
    """

    seconds: Mapping[int, float]
    steps: float


def batch_of(worker: Worker) -> Tensor:
    """Return the lengths (n,) of a typical batch of the largest client, sorted: even quantiles.

    They are those of the public texts, of validation without these, and the longest without both.
    """
    task = worker.task
    rows = task.public if len(task.public) else task.validation
    known = worker.tokens.lengths[torch.as_tensor(rows, dtype=torch.int64)].sort().values
    known = known[known > 0]
    if not len(known):
        known = torch.tensor([worker.settings.model.max_length])
    count = max(1, math.ceil(max(c.expected_batch for c in worker.plan.clients)))
    places = (torch.arange(count) + 0.5) / count * len(known)
    return known[places.long()]


def candidates(lengths: Tensor) -> list[int]:
    """Return the budgets to compare: the default, and powers of two.

    None is smaller than the longest text of the batch, or larger than all of it.
    """
    least, most = int(lengths.max()), int(lengths.sum())
    return sorted({DEFAULT_BUDGET, *(c for c in POWERS if least <= c <= most)})


def padded(lengths: Tensor, budget: int) -> int:
    """Return how many tokens, with padding, a batch of these lengths has when it is cut."""
    rows = range(len(lengths))
    cut = Tokens({}, torch.zeros(len(lengths)), lengths, 0).microbatches(rows, budget)
    return sum(len(group) * int(lengths[group].max()) for group in cut)


def steps_of(worker: Worker) -> int:
    """Return how many local steps a run takes, all clients and rounds together."""
    settings = worker.settings
    return settings.rounds * settings.clients.per_round * settings.training.local_steps


def allowed(steps: float) -> float:
    """Return the seconds that measuring may take, before a run whose local steps take `steps`."""
    return max(min(SECONDS, SHARE * steps), LONG * steps)


def measure(worker: Worker, at_once: int = 1) -> Measured:
    """Return what a typical batch takes at each candidate; the worker is left as it was.

    A micro-batch of texts of the median length goes through the forward and the backward pass of a
    local step, with clipping, without noise or a step. Its seconds for a token, times the padded
    tokens of a batch that is cut so, are compared: the least of several interleaved passes. The
    largest candidates are left out where they find no room, or where `PASSES` over all would take
    longer than `allowed`. `at_once` clients train at a time. Draws from no generator of the run.
    """
    lengths = batch_of(worker)
    typical, budgets = int(lengths.median()), candidates(lengths)
    rows = {c: max(1, c // typical) for c in budgets}
    first = rows[DEFAULT_BUDGET]
    with undisturbed(worker):
        work = work_of(worker, typical, max(rows.values()))
        most = max(first, rows_in_room(worker, partial(work, first), first, at_once))
        work(first)
        each = timed(worker, partial(work, first)) / (first * typical)
        steps = each * padded(lengths, DEFAULT_BUDGET) * steps_of(worker) / at_once
        limit = allowed(steps)
        budgets = [c for c in budgets if rows[c] <= most]
        while PASSES * each * typical * sum(rows[c] for c in budgets) > limit:
            budgets.pop()
        if len(budgets) < 2 or worker.plan.gradients == "loop":  # one example at a time
            return Measured({}, steps)
        works = {c: partial(work, rows[c]) for c in budgets}
        found = least(works, partial(timed, worker), min(SECONDS, limit))
    cost = {c: s / (rows[c] * typical) * padded(lengths, c) for c, s in found.items()}
    return Measured(cost, steps)


def choose(seconds: Mapping[int, float]) -> int:
    """Return the default if none is faster by more than `MARGIN`, otherwise the best.

    Of those that are about as fast as the best it is the smallest, which takes the least memory.
    """
    limit = (1 + MARGIN) * min(seconds.values(), default=0.0)
    near = [c for c, taken in seconds.items() if taken <= limit]
    return DEFAULT_BUDGET if DEFAULT_BUDGET in near or not near else min(near)


def work_of(worker: Worker, length: int, most: int) -> Callable[[int], None]:
    """Return what does a micro-batch's work on so many random texts of a length, at most `most`."""
    settings, model = worker.settings, worker.model
    tokens = random_tokens(
        settings.model.name, model.backbone, worker.tokens, [length] * most, worker.task.classes,
        worker.objective,
    )  # fmt: skip
    asked = replace(worker, tokens=tokens, kept=worker.kept and worker.kept.apart())
    drops = settings.model.dropout > 0 or settings.adapter.dropout > 0
    model.set_dropout(drops)
    parameters = list(model.trainable().values())
    sgd = torch.optim.SGD(parameters, lr=0.0)
    if not worker.plan.per_example:

        def plain(count: int) -> None:
            sgd.zero_grad(set_to_none=True)
            (asked.losses(range(count)).sum() / count).backward()

        return plain
    by = "loop" if worker.hooks is None else "hooks"
    private = make_optimizer(
        sgd, noise_multiplier=0.0, clip_norm=settings.privacy.clip_norm, expected_batch=1.0,
        generator=numpy_stream(SEED, Purpose.CHECK, "budget"), clipping=settings.privacy.clipping,
        gradients=by,
    )  # fmt: skip
    key = keys_of_step(tokens, SEED, "budget")
    own = own_losses(asked.losses, key, worker.device, drops, by == "loop")

    def clipped(count: int) -> None:
        take_microbatch(private, list(range(count)), own, last=False)
        for p in private.params:
            p.summed_grad = None

    return clipped


def rows_in_room(worker: Worker, work: Callable[[], object], rows: int, at_once: int) -> int:
    """Return how many rows find room at once, by the bytes that stand in the work on `rows`."""
    live = Live()
    with live:
        work()
    if worker.device.type == "cuda":
        free = float(torch.cuda.mem_get_info(worker.device)[0])
    else:
        free = float(room() - resident())
    return int(ROOM * free / at_once / (live.most / rows))


def timed(worker: Worker, work: Callable[[], object]) -> float:
    """Return the seconds of work: of this thread's processor if it is alone, else by the clock."""
    cuda = worker.device.type == "cuda"
    clock = time.perf_counter if cuda or torch.get_num_threads() > 1 else time.thread_time
    began = clock()
    work()
    if cuda:
        torch.cuda.synchronize(worker.device)
    return clock() - began


def least(
    works: Mapping[int, Callable[[], None]], time_of: Callable[[Callable[[], None]], float],
    seconds: float,
) -> dict[int, float]:  # fmt: skip
    """Return the least seconds of each work, in passes that go forth and back, begun in `seconds`."""
    found = dict.fromkeys(works, math.inf)
    order = list(works)
    for work in works.values():
        work()
    began, passes = time.perf_counter(), 1
    while passes < PASSES or time.perf_counter() - began < seconds:
        for c in order:
            found[c] = min(found[c], time_of(works[c]))
        order.reverse()
        passes += 1
    return found
