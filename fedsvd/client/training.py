"""Local training of one client for one round."""

from dataclasses import dataclass

import torch

from fedsvd.client.worker import Worker
from fedsvd.lowrank import AdapterState
from fedsvd.privacy.dpsgd import StepReport, dp_step, make_optimizer, poisson_sample
from fedsvd.randomness import Purpose, scoped_dropout, torch_stream
from fedsvd.settings import TrainingSettings


@dataclass(frozen=True)
class LocalResult:
    """A client's state after its local steps, and a report of each step."""

    state: AdapterState
    steps: list[StepReport]


def train_locally(
    worker: Worker,
    state: AdapterState,
    client: int,
    round: int,
    reports: list[StepReport] | None = None,
) -> LocalResult:
    """Run `training.local_steps` steps of (DP-)SGD from `state` on one client's examples.

    Every step draws a Poisson batch at the client's planned rate from the stream (seed, "sampling",
    round, client), computes gradients in micro-batches of `training.microbatch_tokens`, and updates
    what trains; under privacy each example's gradient is clipped and noise from the stream (seed,
    "noise", round, client) is added; with `privacy.secure_noise` both come from the operating
    system. The optimiser is made anew, so nothing but `state` is carried from round to round.
    `reports` receives each step as it is taken, so that a caller knows them after a failure.
    """
    settings, plan = worker.settings, worker.plan.clients[client]
    training, rows = settings.training, worker.parts[client]
    worker.model.write(state)
    parameters = list(worker.model.trainable().values())
    optimizer = _optimizer(parameters, training, learning_rate(training, round, settings.rounds))
    sampler: torch.Generator | None = None
    noise: torch.Generator | None = None
    if not worker.plan.secure_noise:
        sampler = torch_stream(settings.seed, Purpose.SAMPLING, round, client)
        noise = torch_stream(settings.seed, Purpose.NOISE, round, client, device=worker.device)
    private = None
    if worker.plan.per_example:
        private = make_optimizer(
            optimizer,
            noise_multiplier=plan.noise_multiplier,
            clip_norm=settings.privacy.clip_norm,
            expected_batch=plan.expected_batch,
            generator=noise,
            clipping=settings.privacy.clipping,
        )
    reports = [] if reports is None else reports
    worker.model.set_dropout(settings.model.dropout > 0 or settings.adapter.dropout > 0)
    with scoped_dropout(settings.seed, round, client, worker.device):
        for _ in range(training.local_steps):
            drawn = [int(rows[i]) for i in poisson_sample(len(rows), plan.sample_rate, sampler)]
            groups = list(worker.tokens.microbatches(drawn, training.microbatch_tokens))
            if private is not None:
                reports.append(dp_step(private, groups, worker.losses))
            else:
                reports.append(
                    plain_step(worker, optimizer, groups, plan.expected_batch, training.clip_norm)
                )
    worker.model.set_dropout(False)
    return LocalResult(worker.model.read(state), reports)


def plain_step(
    worker: Worker,
    optimizer: torch.optim.Optimizer,
    groups: list[list[int]],
    expected_batch: float,
    clip_norm: float | None,
) -> StepReport:
    """Take one step without privacy: the same batches and the same scaling, no clipping per example.

    The gradient is the sum over the batch divided by its expected size, its norm limited to
    `clip_norm` if one is given. An empty batch is a step of zero gradient.
    """
    optimizer.zero_grad(set_to_none=False)
    parameters = [p for group in optimizer.param_groups for p in group["params"]]
    total, count = 0.0, 0
    for group in groups:
        each = worker.losses(group)
        (each.sum() / expected_batch).backward()
        total, count = total + float(each.detach().sum()), count + len(each)
    for p in parameters:
        p.grad = torch.zeros_like(p) if p.grad is None else p.grad
    limit = float("inf") if clip_norm is None else clip_norm
    norm = torch.nn.utils.clip_grad_norm_(parameters, limit)
    optimizer.step()
    mean = total / count if count else float("nan")
    return StepReport(count, mean, norm.detach().float().cpu().reshape(1))


def learning_rate(training: TrainingSettings, round: int, rounds: int) -> float:
    """Return the rate of a round (1-based): lr, or falling linearly from lr to lr / rounds.

    A falling rate averages out the pull of whoever took part last; it looks at no data.
    """
    if training.schedule == "linear":
        return training.lr * (rounds - round + 1) / rounds
    return training.lr


def _optimizer(
    parameters: list[torch.nn.Parameter], training: TrainingSettings, lr: float
) -> torch.optim.Optimizer:
    if training.optimizer == "adamw":
        return torch.optim.AdamW(parameters, lr=lr, weight_decay=training.weight_decay)
    return torch.optim.SGD(
        parameters,
        lr=lr,
        momentum=training.momentum,
        weight_decay=training.weight_decay,
    )
