"""Local training of one client for one round."""

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from functools import partial

import numpy as np
import torch
from torch import Tensor

from fedsvd.adapters import lora
from fedsvd.adapters.adapted import NAME
from fedsvd.client.attack import NAME_OF_LABELS
from fedsvd.client.block_adamw import BlockAdamW
from fedsvd.client.components import Selection
from fedsvd.client.dropout import keys_of_step, own_losses
from fedsvd.client.received import refuse
from fedsvd.client.riemannian import riemannian_step
from fedsvd.client.rule import LocalRule, apply_rule
from fedsvd.client.tangent import TangentStep
from fedsvd.client.use import Alone
from fedsvd.client.worker import Worker
from fedsvd.errors import InputError
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.pair import kind_of
from fedsvd.models.base import Model
from fedsvd.privacy.dpsgd import UNFINISHED, StepReport, dp_step, make_optimizer, poisson_sample
from fedsvd.randomness import Purpose, attempt_key, numpy_stream, scoped_dropout
from fedsvd.settings import TrainingSettings


@dataclass(frozen=True)
class LocalResult:
    """A client's state after its local steps, and a report of each step.

    `beside` is what the client sends beside what trained, by name: functions of the noised steps.
    """

    state: AdapterState
    steps: list[StepReport]
    beside: Mapping[str, Tensor] = field(default_factory=dict)


def train_locally(
    worker: Worker,
    state: AdapterState,
    client: int,
    round: int,
    reports: list[StepReport] | None = None,
    rule: LocalRule = LocalRule(),  # noqa: B008 -- frozen
    attempt: int = 0,
) -> LocalResult:
    """Run `training.local_steps` steps of (DP-)SGD from `state` on one client's examples.

    Every step draws a Poisson batch at the client's planned rate from the stream (seed, "sampling",
    round, client), computes gradients in micro-batches of `training.microbatch_tokens`, and updates
    what trains; under privacy each example's gradient is clipped and noise from the stream (seed,
    "noise", round, client) is added; with `privacy.secure_noise` both come from the operating
    system. So do dropout masks under privacy, an example's own in every step. The optimiser is made
    anew and the model is mended after whatever ended an earlier client's training, so nothing but
    `state` is carried from client to client.
    `reports` receives each step as it is taken, under privacy by example before its noise is drawn,
    so that after a failure a caller knows of all that may have been released.
    `rule` is what the strategy asks beside.
    A further `attempt` at a round has streams of its own: what was released before is not the same.
    Raises RefusedState where a step would begin from a state that no honest run reaches, under
    privacy by example.
    """
    if worker.use.kinds is None:
        worker.use.kinds = worker.trains
    with Alone(worker.use, worker) as use:
        result = _train(worker, state, client, round, reports, rule, attempt)
        worker.narrow(worker.use.kinds)
        worker.model.set_dropout(False)
        use.done()
    return result


def _train(
    worker: Worker, state: AdapterState, client: int, round: int,
    reports: list[StepReport] | None, rule: LocalRule, attempt: int,
) -> LocalResult:  # fmt: skip
    settings, plan = worker.settings, worker.plan.clients[client]
    training, rows = settings.training, worker.parts[client]
    limits = None
    if worker.plan.per_example:
        limits = refuse(worker.model.layers, worker.initial, state)
    worker.model.write(state)
    named = worker.model.trainable()
    parameters = list(named.values())
    optimizer = make_steps(worker, named, state, client, round, rule)
    tangent = optimizer.coordinates if isinstance(optimizer, TangentStep) else None
    sampler: np.random.Generator | None = None
    noise: np.random.Generator | None = None
    keys: tuple[int | str, ...] = (round, client, *attempt_key(attempt))
    if not worker.plan.secure_noise:
        sampler = numpy_stream(settings.seed, Purpose.SAMPLING, *keys)
        noise = numpy_stream(settings.seed, Purpose.NOISE, *keys)
    private = None

    penalise = penalty_step(worker, parameters, training, round)

    begin: dict[str, Tensor] = {}
    if rule.proximal_mu > 0 or rule.budget:
        begin = {n: p.detach().clone() for n, p in named.items()}
    selection: Selection | None = None
    if rule.budget:
        held = {**state.tensors(), **begin}
        selection = Selection(rule.budget, rule.probe, training.local_steps, held, named)
    layers = worker.model.layers
    factors = lora.named_parameters(layers) if rule.projected else {}
    scales = {n: float(layer.scaling[NAME]) for n, layer in layers.items()} if factors else {}  # type: ignore[index]

    rate = learning_rate(training, round, settings.rounds)
    on_manifold = riemannian_step(worker.model.subspaces(), rate, training.momentum)

    def finish() -> None:  # after clipping and noise
        apply_rule(rule, worker.model.trainable(), begin, factors, scales)
        penalise()
        on_manifold()

    if worker.plan.per_example:
        private = make_optimizer(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            clip_norm=settings.privacy.clip_norm,
            expected_batch=plan.expected_batch,
            generator=noise,
            clipping=settings.privacy.clipping,
            gradients="loop" if worker.hooks is None else "hooks",
        )
        private.coordinates = tangent
        private.attach_step_hook(lambda _: finish())
    reports = [] if reports is None else reports
    if private is not None:
        private.before_noise = partial(reports.append, UNFINISHED)
    attacks = settings.attack.name == NAME_OF_LABELS and client in settings.attack.clients
    losses = partial(worker.losses, flipped=attacks)
    trains = worker.trains
    drops = settings.model.dropout > 0 or settings.adapter.dropout > 0
    worker.model.set_dropout(drops)
    # Under privacy by example all that is drawn belongs to an example: see fedsvd.client.dropout.
    with scoped_dropout(settings.seed, round, client, worker.device):
        for step in range(1, training.local_steps + 1):
            if limits is not None and step > 1:
                limits.hold(named)
            worker.narrow(rule.kinds(step, trains))
            drawn = [int(rows[i]) for i in poisson_sample(len(rows), plan.sample_rate, sampler)]
            groups = list(worker.tokens.microbatches(drawn, training.budget))
            if private is not None:
                seed = None if worker.plan.secure_noise else settings.seed
                key = keys_of_step(worker.tokens, seed, *keys, step)
                own = own_losses(losses, key, worker.device, drops, private.gradients == "loop")
                spent = len(reports)
                taken = dp_step(private, groups, own)
                reports[spent:] = [taken]  # in the place of what was entered before the noise
            else:
                clip = training.clip_norm
                batch = plan.expected_batch
                taken = plain_step(losses, optimizer, groups, batch, clip, finish, tangent)
                reports.append(taken)
            if selection is not None:
                selection.after(step, optimizer)
    worker.narrow(trains)
    beside = optimizer.moments() if isinstance(optimizer, BlockAdamW) else {}
    return LocalResult(worker.model.read(state), reports, beside)


def plain_step(
    losses: Callable[[list[int]], Tensor],
    optimizer: torch.optim.Optimizer,
    groups: list[list[int]],
    expected_batch: float,
    clip_norm: float | None,
    finish: Callable[[], None] = lambda: None,
    coordinates: Callable[[list[Tensor]], list[Tensor]] | None = None,
) -> StepReport:
    """Take one step without privacy: the same batches and the same scaling, no clipping per example.

    The gradient is the sum over the batch divided by its expected size, in `coordinates` if there are
    such, its norm limited to `clip_norm` if one is given; `finish` may then change it. An empty batch
    is a step of zero gradient.
    """
    optimizer.zero_grad(set_to_none=True)
    parameters = [p for g in optimizer.param_groups for p in g["params"] if p.requires_grad]
    total, count = 0.0, 0
    for group in groups:
        each = losses(group)
        (each.sum() / expected_batch).backward()
        total, count = total + float(each.detach().sum()), count + len(each)
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    if coordinates is not None:
        found = coordinates([p.grad.unsqueeze(0) for p in parameters])
        for p, value in zip(parameters, found, strict=True):
            p.grad = value[0].contiguous()
    limit = float("inf") if clip_norm is None else clip_norm
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    finish()
    optimizer.step()
    mean = total / count if count else float("nan")
    return StepReport(count, mean, norm.detach().float().cpu().reshape(1))


def penalty_step(
    worker: Worker, parameters: list[torch.nn.Parameter], training: TrainingSettings, round: int
) -> Callable[[], None]:
    """Return what lets the adapter's regulariser act on a step, if it has one.

    It is a function of the parameters alone, computed outside per-example gradients. A `decoupled`
    one moves the weights by -(lr_t / lr_0) times its gradient, before the optimiser's own step and
    unseen by it, so with AdamW too. The gradient of any other is added to every `grad`.
    """
    return penalty_of(worker.model, parameters, training, round, worker.settings.rounds)


def penalty_of(
    model: Model, parameters: list[torch.nn.Parameter], training: TrainingSettings,
    round: int, rounds: int,
) -> Callable[[], None]:  # fmt: skip
    """Return what `penalty_step` does, for a model without a worker."""
    penalty, decoupled = model.penalty, model.decoupled
    if penalty is None:
        return lambda: None
    share = learning_rate(training, round, rounds) / training.lr

    def act() -> None:
        # Of what trains in this step: a strategy may let A and B take turns.
        now = [p for p in parameters if p.requires_grad]
        with torch.enable_grad():
            found = torch.autograd.grad(penalty(), now, allow_unused=True)
        for p, gradient in zip(now, found, strict=True):
            if gradient is not None and decoupled:
                p.data.sub_(gradient, alpha=share)
            elif gradient is not None:
                p.grad = gradient if p.grad is None else p.grad + gradient

    return act


def learning_rate(training: TrainingSettings, round: int, rounds: int) -> float:
    """Return the rate of a round (1-based): lr, or falling linearly from lr to lr / rounds.

    A falling rate averages out the pull of whoever took part last; it looks at no data.
    """
    if training.schedule == "linear":
        return training.lr * (rounds - round + 1) / rounds
    return training.lr


def make_steps(
    worker: Worker, named: Mapping[str, torch.nn.Parameter], state: AdapterState, client: int,
    round: int, rule: LocalRule,
) -> torch.optim.Optimizer:  # fmt: skip
    """Return a new optimiser of what trains, for a client's steps of one round.

    `state` is what the client was sent; of it the steps of "block_adamw" take the memory. Raises
    InputError where an adapter has a regulariser, which the steps "tangent" could not follow.
    """
    settings, plan = worker.settings, worker.plan.clients[client]
    training, noise = settings.training, 0.0
    lr = learning_rate(training, round, settings.rounds)
    if worker.plan.per_example:
        noise = plan.noise_multiplier * settings.privacy.clip_norm / plan.expected_batch
    if rule.steps == "tangent" and worker.model.penalty is not None:
        raise InputError("adapter: its regulariser is about factors, and these steps are of B A")
    if rule.steps == "tangent":
        return TangentStep(named, training, lr, rule, noise)
    if rule.steps == "block_adamw":
        pull = rule.gamma * lr / learning_rate(training, max(1, round - 1), settings.rounds)
        return BlockAdamW(
            named, lr, training.weight_decay, rule, noise, state.memory, pull, training.local_steps
        )
    rates = {"A": rule.rate_A, "B": rule.rate_B}
    groups = [{"params": [p], "lr": lr * rates.get(kind_of(n), 1.0)} for n, p in named.items()]
    parameters = groups if {rule.rate_A, rule.rate_B} != {1.0} else list(named.values())
    if training.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=training.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
