"""The noise in what the server is given, from the plan alone: for strategies, and as a diagnostic.

Only public quantities are looked at: the plan's noise multipliers, expected batches and clip, the
learning rate, the number of local steps, who replied and with which weight.
"""

from collections.abc import Sequence
from typing import Any

from flwr.app import Message

from fedsvd import records
from fedsvd.client.rule import LocalRule
from fedsvd.client.training import learning_rate
from fedsvd.factors import factors_of
from fedsvd.privacy.client_level import ClientMechanism
from fedsvd.rounds.run import Run
from fedsvd.settings import TrainingSettings
from fedsvd.strategies.base import NoiseView, Strategy
from fedsvd.strategies.spectral import floor, ratios


def noise_in(
    run: Run, number: int, good: Sequence[Message], mechanism: ClientMechanism | None
) -> NoiseView | None:
    """Return the noise of a round's mean and of each layer with it; None without any, or unknown.

    `good` are the replies that are aggregated, `mechanism` that of unit client in this round.
    """
    strategy = run.strategy
    if not isinstance(strategy, Strategy) or not good:
        return None
    variance = mean_variance(run, number, good, mechanism)
    if variance is None:
        return None
    total = dict(run.noise)
    if strategy.adds_moves and set(factors_of(run.settings)) == set(strategy.trains):
        kinds = strategy.trains_in(number)
        for layer, pair in run.state.factors.items():
            of_B, of_A = total.get(layer, (0.0, 0.0))
            if "B" in kinds:
                of_B += variance * float(pair.A.double().square().sum()) / pair.rank
            if "A" in kinds:
                of_A += variance * float(pair.B.double().square().sum()) / pair.rank
            total[layer] = (of_B, of_A)
    return NoiseView(variance, total)


def mean_variance(
    run: Run, number: int, good: Sequence[Message], mechanism: ClientMechanism | None
) -> float | None:
    """Return the variance of every entry of the weighted mean of the replies.

    Unit example: sum_k p_k^2 gain (sigma_k C / b_k)^2, where every entry of every client takes plain
    steps of SGD; None under any other local rule, which filters, scales, leaves out or pulls, and
    where clients have ranks of their own. Unit client: (sigma C / m)^2, whatever the clients do.
    """
    settings, plan = run.settings, run.worker.plan
    if mechanism is not None:
        return (mechanism.update_noise * mechanism.clip_norm / mechanism.expected_clients) ** 2
    if not plan.per_example or settings.training.optimizer != "sgd":
        return None
    plain = isinstance(run.strategy, Strategy) and run.strategy.local == LocalRule()
    if not plain or settings.clients.ranks is not None:
        return None
    weights = [float(records.metrics_of(r)[records.WEIGHT]) for r in good]  # type: ignore[arg-type]
    planned = [plan.clients[r.metadata.src_node_id] for r in good]
    clip = settings.privacy.clip_norm
    each = [
        (w / sum(weights) * c.noise_multiplier * clip / c.expected_batch) ** 2
        for w, c in zip(weights, planned, strict=True)
    ]
    lr = learning_rate(settings.training, number, settings.rounds)
    return gain(settings.training, lr) * sum(each)


def gain(training: TrainingSettings, lr: float) -> float:
    """Return what the local steps make of noise of variance 1 in every step's gradient.

    lr^2 J for plain SGD, J = `training.local_steps`. With momentum or weight decay each step's noise
    goes on to move what follows; what the data's gradients make of it is left out.
    """
    total, J = 0.0, training.local_steps
    for noisy in range(J):
        x = momentum = 0.0
        for step in range(noisy, J):
            gradient = (step == noisy) + training.weight_decay * x
            momentum = training.momentum * momentum + gradient
            x -= lr * momentum
        total += x * x
    return total


def noted(run: Run, number: int, metrics: dict[str, Any]) -> None:
    """Take the round's noise into the run's, and the singular values above it into the metrics."""
    strategy = run.strategy
    if not isinstance(strategy, Strategy) or strategy.noise is None or not strategy.noise.total:
        return
    run.noise = dict(strategy.noise.total)
    later = strategy.trains_in(number + 1)
    if len(later) != 1:
        return
    found = ratios(run.state, later[0], strategy.noise)
    metrics["noise_ratios"] = {n: [round(x, 4) for x in values] for n, values in found.items()}
    metrics["noise_floor"] = floor(run.state, later[0], strategy.noise)
