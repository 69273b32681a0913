"""How per-example gradients are taken on the model at hand: by hooks, or one example at a time.

Before the first round the model that will train is asked, on random tokens and with its factors
moved from their start (B = 0 would hide every gradient of A). What it does is measured and not looked
up, so a model that nobody has tried is treated as one that everybody knows.
"""

import random
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from functools import partial
from typing import Any, Protocol

import numpy as np
import torch
from torch import Tensor

from fedsvd.client import remembered
from fedsvd.client.dropout import keys_of_step, own_losses
from fedsvd.client.kept import Kept
from fedsvd.client.probe import SEED, some_tokens
from fedsvd.client.use import Use
from fedsvd.data.task import Task
from fedsvd.data.tokens import Tokens
from fedsvd.errors import InputError, wrong
from fedsvd.models.base import Model
from fedsvd.objectives.base import Objective
from fedsvd.privacy.dpsgd import gradients_alone
from fedsvd.privacy.exactness import CLEAR, TOLERANCE, Difference, farthest
from fedsvd.privacy.hooks import Hooks
from fedsvd.privacy.plan import PrivacyPlan
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.settings import Settings
from fedsvd.terminal import complain

GROUPS = ((0, 1, 2), (3, 4), (0,))  # micro-batches: of several, of two of unlike lengths, of one
AGAIN = (1,)  # examples that are asked once more, after all others
PAUSES = (0.0, 0.003, 0.011, 0.037, 0.053, 0.071, 0.097, 0.123)  # seconds before each look
REPEATED = 1e-6  # what they may differ by: some kernels of CUDA add in any order


class Worker(Protocol):
    """What is asked of a `fedsvd.client.worker.Worker`, which is built with the answer."""

    settings: Settings
    task: Task
    tokens: Tokens
    plan: PrivacyPlan
    device: torch.device
    model: Model
    hooks: Hooks | None
    use: Use
    kept: Kept | None
    weights: str
    left_out: Sequence[str]

    @property
    def objective(self) -> Objective:
        """What the model is trained for."""

    @property
    def trains(self) -> tuple[str, ...]:
        """Which of A, B train now."""

    def narrow(self, kinds: Sequence[str]) -> None:
        """Let exactly these kinds train for now."""

    def mend(self) -> None:
        """Put the model in order."""

    def losses(self, rows: Sequence[int]) -> Tensor:
        """Return the loss (n,) of each row of its tokens."""


def settle(worker: Worker) -> None:
    """Decide how the worker takes per-example gradients, and enter it into its plan.

    `privacy.gradients` "auto" takes hooks where they are right and says on stderr where they are not;
    "hooks" raises InputError there, with the name of the tensor that is farthest off; "loop" asks
    nothing of hooks. Raises InputError for a model in which not even an example that is alone has a
    gradient of its own. Rounding counts as well: what it lets an example do to others' gradients, it
    does. A process that has found hooks right for a model does not ask again. It draws from no global
    generator and leaves the model with the same bits.
    """
    wanted = worker.settings.privacy.gradients
    key = remembered.checked(worker, worker.trains, worker.task.classes)
    if wanted != "loop" and worker.weights and remembered.passed(key):
        with undisturbed(worker):
            worker.plan = replace(worker.plan, gradients="hooks")
        return
    with undisturbed(worker), _asked(worker) as asked:
        expected = _alone(asked)
        worst = Difference("", 0.0) if wanted == "loop" else _by_hooks(asked, expected)
    wrongly = worst if worst.size > TOLERANCE else None
    if wanted != "loop" and worker.weights and worst.size < CLEAR * TOLERANCE:
        remembered.note(key)
    chosen = "loop" if wanted == "loop" or wrongly is not None else "hooks"
    if wrongly is not None:
        if wanted == "hooks":
            raise wrong(
                "privacy.gradients", "hooks",
                f"'loop' or 'auto' with {worker.settings.model.name}: {wrongly.told} in hooks",
            )  # fmt: skip
        complain(
            f"privacy.gradients=auto: examples are taken one at a time (loop), as hooks are wrong "
            f"for {worker.settings.model.name}: {wrongly.told}"
        )
    if chosen == "loop" and worker.hooks is not None:
        worker.hooks.cleanup()
        worker.hooks = None
    worker.plan = replace(worker.plan, gradients=chosen)


@contextmanager
def _asked(worker: Worker) -> Iterator[Worker]:
    """Give the worker with other tokens, in float32, with all that trains moved from its start."""
    drops = worker.settings.model.dropout > 0 or worker.settings.adapter.dropout > 0
    precision, worker.model.precision = worker.model.precision, "fp32"
    worker.model.set_dropout(drops)
    with torch.no_grad():
        for name, p in worker.model.trainable().items():
            draw = torch_stream(SEED, Purpose.CHECK, name)
            size = float(p.double().square().mean().sqrt()) or 0.2
            p.add_(0.1 * size * torch.randn(p.shape, generator=draw).to(p))
    try:
        known: Any = worker
        tokens, longest = worker.tokens, worker.settings.model.max_length
        name, model = worker.settings.model.name, worker.model.backbone
        classes = worker.task.classes
        asked = some_tokens(name, model, tokens, longest, classes, worker.objective)
        # Nothing is kept yet of these: the blocks below are asked too.
        kept = worker.kept and worker.kept.apart()
        yield replace(known, tokens=asked, kept=kept)
    finally:
        worker.model.precision = precision


@contextmanager
def undisturbed(worker: Worker) -> Iterator[None]:
    """Leave values, modes, hooks and random generators as they are."""
    values = {n: p.detach().clone() for n, p in worker.model.trainable().items()}
    worker.use.kinds = worker.trains
    devices = [worker.device] if worker.device.type == "cuda" else []
    try:
        with torch.random.fork_rng(devices=devices):
            yield
    finally:
        worker.mend()
        with torch.no_grad():
            for name, p in worker.model.trainable().items():
                p.copy_(values[name])


def _losses(worker: Worker, loop: bool) -> Any:
    settings = worker.settings
    drops = settings.model.dropout > 0 or settings.adapter.dropout > 0
    key = keys_of_step(worker.tokens, SEED, "check")
    return own_losses(worker.losses, key, worker.device, drops, loop)


def _alone(worker: Worker) -> dict[str, Tensor]:
    """Return the gradients (5, *shape) of each example alone, by plain autograd.

    Raises InputError where an example does not have the same gradient after others, or a model
    remembers what it sees or draws where no key reaches.
    """
    named = worker.model.trainable()
    buffers = {n: b.detach().clone() for n, b in worker.model.named_buffers()}
    losses, rows = _losses(worker, True), range(len(worker.tokens.labels))
    alone = partial(gradients_alone, list(named.values()), losses=losses)
    found: list[Tensor] = []

    def take() -> None:
        found[:] = alone(rows)[0]

    if worker.hooks is not None:
        worker.hooks.disable_hooks()
    try:
        drawn = _draws(take)
        again = alone(AGAIN)[0]
    except Exception as error:
        said = (str(error).splitlines() or [""])[0]
        raise _unfit(worker, f"it raises {type(error).__name__}: {said}") from error
    finally:
        if worker.hooks is not None:
            worker.hooks.enable_hooks()
    if drawn:
        raise _unfit(worker, "it draws from the global generators of Python or NumPy")
    expected = dict(zip(named, found, strict=True))
    for name, value in expected.items():
        if not bool(value.isfinite().all()):
            raise _unfit(worker, f"{name} has gradients that are not finite")
    same = {n: value[list(AGAIN)] for n, value in expected.items()}
    difference = farthest(dict(zip(named, again, strict=True)), same)
    if difference.size > REPEATED:
        raise _unfit(worker, f"the gradient of {difference.name} depends on earlier examples")
    for name, buffer in worker.model.named_buffers():
        if name not in buffers or not torch.equal(buffer, buffers[name]):
            raise _unfit(worker, f"{name} remembers what the model has seen")
    return expected


def _unfit(worker: Worker, why: str) -> InputError:
    return InputError(
        f"model.name: {worker.settings.model.name!r} cannot be trained with privacy.unit=example, "
        f"as no gradient would be one example's own: {why}"
    )


def _by_hooks(worker: Worker, expected: dict[str, Tensor]) -> Difference:
    """Return where hooks on padded batches are farthest from `expected`."""
    worst = Difference("", 0.0)
    for kinds, group in _turns(worker.trains):
        worker.narrow(kinds)
        try:
            difference = _compare(worker, group, expected)
        except Exception as error:  # a layer that hooks cannot take
            said = (str(error).splitlines() or [""])[0]
            return Difference("", float("inf"), f"{type(error).__name__}: {said}"[:200])
        if difference.size > worst.size:
            worst = difference
    return worst


def _turns(kinds: tuple[str, ...]) -> list[tuple[tuple[str, ...], Sequence[int]]]:
    """Return what trains with which batch: all, and each half where a strategy could alternate."""
    halves = [((kind,), GROUPS[0]) for kind in kinds] if len(kinds) > 1 else []
    return [*((kinds, group) for group in GROUPS), *halves]


def _compare(worker: Worker, group: Sequence[int], expected: dict[str, Tensor]) -> Difference:
    named, losses = worker.model.trainable(), _losses(worker, False)
    assert isinstance(worker.hooks, Hooks)
    worker.hooks.renew()
    state = _generators(worker)
    losses(group).sum().backward()
    if state != _generators(worker):
        return Difference("", float("inf"), "the model draws random numbers that are not dropout")
    found = {n: getattr(p, "grad_sample", None) for n, p in named.items()}
    for name, value in found.items():
        if not isinstance(value, Tensor):
            return Difference(name, float("inf"), f"{name} has no per-example gradients")
    rows = {n: expected[n][list(group)] for n in named}
    return farthest(found, rows)  # type: ignore[arg-type]


def _draws(work: Callable[[], None]) -> bool:
    """Do `work`; return whether it moves the global generators of Python or NumPy.

    Threads of others may draw from them meanwhile, as Flower's does while it waits for messages. So
    where there are other threads it is done again, until all of it moves nothing. A model that draws
    in any of its examples moves them each time.
    """
    for pause in PAUSES:
        time.sleep(pause)
        before = _outside_torch()
        work()
        if before == _outside_torch():
            return False
        if threading.active_count() == 1:
            break
    return True


def _generators(worker: Worker) -> list[bytes]:
    cuda = worker.device.type == "cuda"
    found = [torch.get_rng_state(), *([torch.cuda.get_rng_state(worker.device)] if cuda else [])]
    return [state.numpy().tobytes() for state in found]


def _outside_torch() -> tuple[object, ...]:
    """Return where the global generators of Python and NumPy are."""
    state: Any = np.random.get_state(legacy=False)  # noqa: NPY002 -- looked at, not drawn from
    return random.getstate(), state["state"]["key"].tobytes(), state["state"]["pos"]
