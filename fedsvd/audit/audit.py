"""An audit: of the mechanism, then of a run; with all that it found as data."""

import math
from collections.abc import Callable
from dataclasses import asdict, dataclass, field, replace
from typing import Any

import numpy as np

from fedsvd.audit.bound import audit_mechanism
from fedsvd.audit.checks import bounds, run_checks
from fedsvd.audit.estimators import Estimate, gaussian_mu, limit_mu
from fedsvd.audit.observed import Observed
from fedsvd.audit.pipeline import audited, run_with_canaries
from fedsvd.audit.server import server_with_canaries
from fedsvd.audit.verdicts import Verdict
from fedsvd.client.worker import get_worker
from fedsvd.composing import config_folder
from fedsvd.errors import wrong
from fedsvd.rounds.budget import settled
from fedsvd.settings import Settings
from fedsvd.strategies.base import Strategy
from fedsvd.strategies.build import build_strategy
from fedsvd.strategies.pairs import check_pair
from fedsvd.strategies.use import check_use

PARTS = ("both", "mechanism", "pipeline")


@dataclass(frozen=True)
class Options:
    """How an audit is made; see `python -m fedsvd.audit --help`."""

    canaries: int = 2000
    replays: int = 2000
    rounds: int | None = None
    part: str = "both"
    real_gradients: bool = False


@dataclass(frozen=True)
class Audit:
    """What an audit found: verdicts, figures by name, and the canaries' scores."""

    seed: int
    verdicts: list[Verdict]
    figures: dict[str, Any] = field(default_factory=dict)
    inside: np.ndarray = field(default_factory=lambda: np.zeros(0))
    outside: np.ndarray = field(default_factory=lambda: np.zeros(0))

    @property
    def flagged(self) -> list[Verdict]:
        """The verdicts that contradict theory."""
        return [v for v in self.verdicts if v.flagged]

    def as_dict(self) -> dict[str, Any]:
        """Return everything as JSON-ready values; an infinite number as null."""
        return {
            "seed": self.seed,
            "flagged": [f"{v.part}: {v.name}" for v in self.flagged],
            "verdicts": [asdict(v) for v in self.verdicts],
            **{name: _plain(value) for name, value in self.figures.items()},
            "scores": {"in": self.inside.tolist(), "out": self.outside.tolist()},
        }


def _plain(value: Any) -> Any:
    if isinstance(value, dict):
        return {k: _plain(v) for k, v in value.items()}
    return None if isinstance(value, float) and not math.isfinite(value) else value


def check_audited(settings: Settings, options: Options) -> None:
    """Raise InputError unless the configuration can be audited, before any work."""
    if settings.privacy.unit == "none":
        raise wrong(
            "privacy", "none", "dp_sgd or client_level: there is no guarantee to be audited"
        )
    if settings.partition.name == "own":
        raise wrong(
            "partition", "own", "another one: canaries are put into clients of this process; give "
            "the node's file as data.path with partition=iid",
        )  # fmt: skip
    if options.rounds is not None and options.rounds > settings.rounds:
        raise wrong("--rounds", options.rounds, f"at most rounds = {settings.rounds}")
    strategy = build_strategy(settings.strategy)
    check_use(settings, strategy)
    check_pair(settings, strategy, config_folder())
    ours = isinstance(strategy, Strategy) and strategy.local.steps != "plain"
    if ours and options.part != "mechanism":
        raise wrong(
            "--part", options.part,
            f"'mechanism' with {settings.strategy.target}: the pipeline's part undoes plain steps",
        )  # fmt: skip


def audit(given: Settings, options: Options, tell: Callable[[str], None] = lambda _: None) -> Audit:
    """Audit a configuration; `tell` receives lines of progress. Raises InputError, RunError."""
    settings = settled(audited(given))
    plan = get_worker(settings).plan
    verdicts: list[Verdict] = []
    figures: dict[str, Any] = {"plan": _planned(plan)}
    seen = Observed(plan, True)
    if options.part != "pipeline":
        tell(f"mechanism: {options.replays} replays")
        mechanism, found = audit_mechanism(settings, plan, options.replays)
        verdicts += found
        shown = replace(mechanism, replays=None)  # type: ignore[arg-type]
        figures["mechanism"] = {k: v for k, v in asdict(shown).items() if k != "replays"}
    if options.part != "mechanism":
        rounds = options.rounds or settings.rounds
        tell(f"pipeline: {rounds} rounds with canaries")
        if plan.unit == "example":
            seen = run_with_canaries(
                settings, options.canaries, rounds, not options.real_gradients, tell
            )
        else:
            seen = server_with_canaries(settings, rounds, tell)
        verdicts += run_checks(seen)
        figures["pipeline"] = _of_run(seen)
    return Audit(settings.seed, verdicts, figures, seen.inside, seen.outside)


def _planned(plan: Any) -> dict[str, Any]:
    worst = max(plan.clients, key=lambda c: c.epsilon_bound or 0.0)
    return {
        "unit": plan.unit, "epsilon": worst.epsilon_bound, "delta": plan.delta,
        "noise_multiplier": worst.noise_multiplier, "rate": worst.accounted_rate,
        "steps": worst.steps_bound,
        "mu_limit": limit_mu(worst.accounted_rate, worst.noise_multiplier, worst.steps_bound),
    }  # fmt: skip


def _of_run(seen: Observed) -> dict[str, Any]:
    some = min(len(seen.inside), len(seen.outside)) > 1
    mu = gaussian_mu(seen.inside, seen.outside) if some else Estimate(math.nan, math.nan)
    return {
        "rounds": seen.rounds, "mu": mu.value, "mu_se": mu.se, "mu_theory": seen.theory,
        "epsilon_ledger": seen.epsilon, "bounds": bounds(seen),
        "contribution": seen.shift.value, "contribution_se": seen.shift.se,
    }  # fmt: skip
