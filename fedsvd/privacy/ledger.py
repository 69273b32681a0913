"""What every client has really spent."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from fedsvd.privacy.accounting import CLOSED_FORM, Cost, Event, cost
from fedsvd.privacy.plan import PrivacyPlan, warnings_of


@dataclass(frozen=True)
class Spent:
    """The steps of one client in one round, each a Poisson-subsampled Gaussian mechanism."""

    round: int
    mechanism: str
    noise_multiplier: float
    sample_rate: float
    steps: int
    aggregated: bool = False  # whether the reply went into the round's mean


@dataclass(frozen=True)
class _Known:
    """What follows from a client's events: their cost, and the client's part of `as_dict`.

    `notes` are lines on the figures that another accountant had to give.
    """

    plan: PrivacyPlan
    events: list[Spent]
    cost: Cost | None
    told: dict[str, Any]
    notes: list[str]


@dataclass
class Ledger:
    """Every client's events, and the epsilon that they compose to.

    With unit "example" a client is charged the steps of DP-SGD that it took. With unit "client" it
    is charged one step for each round it took part in, or, if a trusted server hides who did, for
    each round of the run.
    """

    plan: PrivacyPlan
    events: dict[int, list[Spent]] = field(default_factory=dict)
    reserved: Mapping[int, int] = field(default_factory=dict)  # steps that may be charged yet
    _known: dict[int, _Known] = field(default_factory=dict, repr=False, compare=False)

    def record(self, client: int, round: int, steps: int) -> None:
        """Enter `steps` steps that client took in `round` with its planned rate and noise."""
        planned = self.plan.clients[client]
        spent = Spent(
            round, self.plan.mechanism, planned.noise_multiplier, planned.accounted_rate, steps
        )
        self.events.setdefault(client, []).append(spent)

    def record_round(self, round: int, asked: Sequence[int], taken: Mapping[int, int]) -> None:
        """Enter a round: `asked` took part; `taken` holds the steps that they report.

        One that does not say how far it came, as its process died, is charged the whole round.
        """
        if self.plan.unit != "client":
            for client in asked:
                self.record(client, round, taken.get(client, self.plan.steps_per_round))
            return
        everybody = range(len(self.plan.clients))
        for client in everybody if self.plan.hides_clients else asked:
            self.record(client, round, 1)

    def record_mean(self, round: int, clients: Sequence[int]) -> None:
        """Note that the replies of `clients`, and no others, went into the mean of the round.

        Of a round that was repeated, the last attempt did.
        """
        for client in clients:
            events = self.events.get(client, [])
            at = max(i for i, event in enumerate(events) if event.round == round)
            events[at] = replace(events[at], aggregated=True)

    def steps(self, client: int) -> int:
        """Return the number of steps that the client has been charged."""
        return sum(e.steps for e in self.events.get(client, []))

    def cost(self, client: int, further_steps: int = 0) -> Cost | None:
        """Return what was spent, or will be after `further_steps` more; None without privacy."""
        if not self.plan.private:
            return None
        if not further_steps:
            return self._of(client).cost
        return self._computed(client, further_steps)

    def _computed(self, client: int, further_steps: int) -> Cost:
        assert self.plan.delta is not None
        assert self.plan.accountant is not None
        planned = self.plan.clients[client]
        events: list[Event] = [
            (e.noise_multiplier, e.sample_rate, e.steps) for e in self.events.get(client, [])
        ]
        events.append((planned.noise_multiplier, planned.accounted_rate, further_steps))
        return cost(events, self.plan.delta, self.plan.accountant)

    def _of(self, client: int) -> _Known:
        """Return what follows from a client's events, computed anew only where there are others.

        Of many registered clients a round changes a few.
        """
        events, held = self.events.get(client, []), self._known.get(client)
        if held is not None and held.plan is self.plan and held.events == events:
            return held
        spent = self._computed(client, 0) if self.plan.private else None
        told = {
            **vars(self.plan.clients[client]),
            "rounds": len(events),
            "steps": self.steps(client),
            "epsilon": None if spent is None else spent.epsilon,
            "events": [dict(vars(e)) for e in events],
        }
        notes = self._stand_ins(client, spent)
        self._known[client] = _Known(self.plan, list(events), spent, told, notes)
        return self._known[client]

    def _all(self) -> list[_Known]:
        """Return `_of` every client; a look at each, as in every round there may be thousands."""
        known, events, plan, none = self._known.get, self.events.get, self.plan, []  # type: ignore[var-annotated]
        return [
            held
            if (held := known(k)) and held.plan is plan and held.events == events(k, none)
            else self._of(k)
            for k in range(len(plan.clients))
        ]

    def epsilon(self, client: int) -> float | None:
        """Return the epsilon that the client has spent; None without privacy."""
        spent = self.cost(client)
        return None if spent is None else spent.epsilon

    def would_exceed(self, client: int) -> bool:
        """Return whether another round would take the client above its target.

        Without a target (the noise was given instead) the limit is what the plan stated. Published
        recipes (`privacy.accounting`) hold nobody back.
        """
        if not self.plan.private or not self.plan.enforced:
            return False
        planned = self.plan.clients[client]
        further = self.plan.steps_per_round + self.reserved.get(client, 0)
        if self.steps(client) + further <= planned.steps_bound:
            return False  # within what the noise was calibrated for
        if self.plan.epsilon is None:
            return True
        after = self.cost(client, further)
        return after is not None and after.epsilon > self.plan.epsilon

    def epsilons(self) -> list[float | None]:
        """Return the epsilon that every client has spent; None without privacy."""
        return [known.told["epsilon"] for known in self._all()]

    def epsilon_max(self) -> float | None:
        """Return the largest epsilon that any client has spent; None without privacy."""
        known = [e for e in self.epsilons() if e is not None] if self.plan.private else []
        return max(known, default=None)

    def above_target(self) -> dict[int, float]:
        """Return what the clients have spent that are above the target, as recipes let them be."""
        target = self.plan.epsilon
        if target is None or self.plan.enforced:
            return {}
        spent = {c.client: self.epsilon(c.client) or 0.0 for c in self.plan.clients}
        return {k: e for k, e in spent.items() if e > target}

    def as_dict(self) -> dict[str, Any]:
        """Return plan, events and epsilon of every client as JSON-ready values, not to be changed.

        A client's are the same object as before where nothing was charged to it since.
        """
        known, notes = self._all(), warnings_of(self.plan)
        for one in known:
            notes += one.notes
        spent = [one.cost.epsilon for one in known if one.cost is not None]
        largest = max(spent, default=None)
        if largest is not None and not math.isfinite(largest):
            notes.append("an infinite epsilon: no accountant could bound it")
        above = self.above_target()
        for client, found in above.items():
            notes.append(
                f"client {client}: has spent epsilon {found:.4f}, above the target "
                f"{self.plan.epsilon:g}: privacy.accounting={self.plan.accounting} is no bound"
            )
        return {
            **replace(self.plan, clients=()).as_dict(),
            "epsilon_max": largest,
            "above_target": {str(k): e for k, e in above.items()},
            "notes": notes,
            "clients": [one.told for one in known],
        }

    def _stand_ins(self, client: int, spent: Cost | None) -> list[str]:
        """Return a line for each figure of a client that another accountant had to give."""
        notes, chosen = [], self.plan.accountant
        bound = self.plan.clients[client].accountant
        if bound is not None and bound not in (chosen, CLOSED_FORM):
            notes.append(
                f"client {client}: the {chosen} accountant failed on the epsilon bound; {bound} "
                "answered, which is an upper bound"
            )
        if spent is not None and spent.failed:
            why = "; ".join(f"the {name} accountant failed: {why}" for name, why in spent.failed)
            notes.append(
                f"client {client}: on the epsilon spent, {why}; {spent.accountant} answered, which "
                "is an upper bound"
            )
        return notes

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over the events of `as_dict`."""
        self.load_events({c["client"]: c["events"] for c in state["clients"] if c["events"]})

    def events_as_dict(self) -> dict[str, list[dict[str, Any]]]:
        """Return every client's events as JSON-ready values."""
        return {str(k): [dict(vars(e)) for e in events] for k, events in self.events.items()}

    def load_events(self, events: Mapping[Any, Sequence[Mapping[str, Any]]]) -> None:
        """Take over the events of `events_as_dict`; ValueError for a client that is not planned."""
        loaded = {int(k): [Spent(**e) for e in found] for k, found in events.items()}
        if not set(loaded) <= set(range(len(self.plan.clients))):
            raise ValueError("events of a client that the plan does not have")
        self.events = loaded
