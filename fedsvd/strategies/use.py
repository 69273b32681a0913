"""Whether a strategy can be used under a run's settings, and why not."""

from collections.abc import Sequence

from flwr.serverapp.strategy import Strategy as FlowerStrategy

from fedsvd.client.rule import LocalRule
from fedsvd.errors import InputError, wrong
from fedsvd.factors import factors_of, find_class
from fedsvd.settings import Settings
from fedsvd.strategies.base import Strategy
from fedsvd.strategies.stock import check_stock, most_replies

MOST_TURNS = 1000  # rounds in which turns are looked for


def check_use(settings: Settings, strategy: FlowerStrategy | None = None) -> None:
    """Raise InputError if the strategy cannot be used under these settings.

    Under privacy a server step must be post-processing of what clients released; and one that relies
    on equal A cannot have clients train A, nor any other what it does not send back to them. One that
    looks at public texts (`strategy`, the built one, can tell) must have some, and one of Flower's
    what its rule takes.
    """
    found = find_class(settings.strategy.target)
    rule = found if strategy is None else strategy  # a constructor may set what a class declares
    if isinstance(strategy, Strategy) and strategy.needs_public and not settings.data.public:
        raise wrong(
            "data.public", 0,
            f"at least 1 with {settings.strategy.target}, which looks at so many training examples "
            "that no client then holds",
        )  # fmt: skip
    if strategy is not None:
        check_stock(settings, strategy)
    apart = isinstance(strategy, Strategy) and strategy.tells_clients_apart
    if apart and settings.privacy.unit == "client":
        raise InputError(
            f"strategy: {settings.strategy.target} tells clients apart, and with privacy.unit=client "
            "the server has their one noised mean; use another strategy, or hetlora with "
            "strategy.gamma=1"
        )
    if isinstance(strategy, Strategy) and strategy.compares_clients:
        _check_several(settings)
    ranks = settings.clients.ranks
    several = issubclass(found, Strategy) and (found.any_rank or found.selects)
    if ranks is not None and not several:
        raise wrong(
            "clients.ranks", list(ranks),
            f"null with {settings.strategy.target}, whose clients must have one rank; fed_plora, "
            "flexlora, flora, florist, hetlora, ilora and lora_a2 allow several",
        )  # fmt: skip
    steps = settings.training.local_steps
    if isinstance(strategy, Strategy) and strategy.local.budget and steps < 2:
        raise wrong(
            "training.local_steps", steps,
            f"at least 2 with {settings.strategy.target}, whose first steps only find what to train",
        )  # fmt: skip
    # A strategy of Flower's sees replies alone, which is post-processing, unless it says otherwise.
    if settings.privacy.unit != "none" and not getattr(rule, "post_processing", True):
        raise InputError(
            f"strategy: the server step of {settings.strategy.target} uses more than what clients "
            f"released (post_processing is False), so privacy.unit={settings.privacy.unit} would not "
            "hold; use privacy=none or another strategy"
        )
    if isinstance(strategy, Strategy):
        _check_steps(settings, strategy)
    if not issubclass(found, Strategy):
        return
    if "W" in found.broadcasts and settings.model.stored:
        raise InputError(
            f"strategy: {settings.strategy.target} changes frozen weights, and with "
            f"{settings.model.stored} they are rounded; set model.dtype=float32 and "
            "model.quantization=none, or use another strategy"
        )
    trains = factors_of(settings)
    keeps = rule.keeps if isinstance(rule, Strategy) else found.keeps
    kept = set(keeps) & set(trains)
    if settings.averaging.active and kept:
        raise wrong(
            "averaging.name", settings.averaging.name,
            f"'none' with {settings.strategy.target}, whose clients keep {', '.join(sorted(kept))} "
            "of their own: an average has other factors than those that belong to them",
        )  # fmt: skip
    _check_turns(settings, strategy, trains)
    _check_noise(settings, strategy, trains)
    if found.needs_equal_A and "A" in trains:
        raise wrong(
            "training.factors",
            settings.training.factors,
            f"'auto' or 'B' with {settings.strategy.target}, whose clients must hold one A",
        )
    lost = [kind for kind in trains if kind not in (*keeps, *found.broadcasts)]
    if lost:
        raise InputError(
            f"training.factors: {settings.training.factors!r} has clients train {lost[0]}, which "
            f"{settings.strategy.target} averages but does not send back to them (its broadcasts: "
            f"{', '.join(found.broadcasts) or 'none'})"
        )


def _check_several(settings: Settings) -> None:
    """Raise InputError where the server has one message a round, and nothing to compare."""
    target = settings.strategy.target
    if settings.privacy.unit == "client":
        raise InputError(
            f"strategy: {target} compares the clients of a round, and with privacy.unit=client the "
            "server has their one noised mean; use another strategy"
        )
    key, most = most_replies(settings)
    if most < 2:
        raise wrong(key, most, f"at least 2 with {target}, which compares the clients of a round")


def _check_steps(settings: Settings, strategy: Strategy) -> None:
    """Raise InputError for settings under which the clients' steps are not what the strategy says."""
    steps, name = strategy.local.steps, settings.strategy.target
    if steps == "plain":
        return
    if settings.privacy.unit == "client":
        raise InputError(
            f"strategy: {name} is about the noise in the clients' steps, and with "
            "privacy.unit=client there is none; use privacy=dp_sgd or another strategy"
        )
    if steps == "block_adamw" and settings.training.optimizer != "adamw":
        raise wrong(
            "training.optimizer", settings.training.optimizer,
            f"'adamw' with {name}, with a training.lr for it, such as 1e-3",
        )  # fmt: skip
    if steps == "tangent":
        if set(factors_of(settings)) != {"A", "B"}:
            raise wrong(
                "training.factors", settings.training.factors,
                f"'auto' or 'AB' with {name}, which steps B A itself",
            )  # fmt: skip
        if settings.training.optimizer == "sgd" and settings.training.momentum:
            raise wrong("training.momentum", settings.training.momentum, f"0 with {name}")


def _check_turns(
    settings: Settings, strategy: FlowerStrategy | None, trains: Sequence[str]
) -> None:
    """Raise InputError if a strategy lets factors take turns, and one of them would never train."""
    if not isinstance(strategy, Strategy):
        return
    turns = {strategy.trains_in(n): n for n in range(min(settings.rounds, MOST_TURNS), 0, -1)}
    for turn, number in turns.items():
        if len(turns) > 1 and not set(turn) & set(trains):
            raise wrong(
                "training.factors", settings.training.factors,
                f"'auto' with {settings.strategy.target}, whose clients train {' and '.join(turn)} "
                f"alone in round {number}",
            )  # fmt: skip


def _check_noise(
    settings: Settings, strategy: FlowerStrategy | None, trains: Sequence[str]
) -> None:
    """Raise InputError if a strategy must know the noise of what is released, and cannot."""
    if not isinstance(strategy, Strategy) or not strategy.needs_noise:
        return
    name, training = settings.strategy.target, settings.training
    if settings.privacy.unit == "example" and training.optimizer != "sgd":
        raise wrong(
            "training.optimizer", training.optimizer,
            f"'sgd' with {name}, which must know the noise that a client's steps add up to",
        )  # fmt: skip
    if settings.privacy.unit == "example" and strategy.local != LocalRule():
        raise wrong(
            "strategy", name,
            "one with plain local steps: it must know the noise that a client's steps add up to, and "
            "asks for others",
        )  # fmt: skip
    if settings.privacy.unit == "example" and settings.clients.ranks is not None:
        raise wrong(
            "clients.ranks", list(settings.clients.ranks),
            f"null with {name}, which must know the noise in every entry",
        )  # fmt: skip
    if set(trains) != set(strategy.trains):
        raise wrong(
            "training.factors", training.factors,
            f"'auto' with {name}, which adds up the moves of {' and '.join(strategy.trains)}",
        )  # fmt: skip
    if strategy.server is not None:
        raise wrong(
            "strategy.server", strategy.server.name,
            f"null with {name}, whose state is no mean to follow while it shrinks singular values",
        )  # fmt: skip
