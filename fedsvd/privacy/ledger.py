"""What every client has really spent."""

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from typing import Any

from fedsvd.privacy.accounting import epsilon
from fedsvd.privacy.plan import PrivacyPlan


@dataclass(frozen=True)
class Spent:
    """The steps of one client in one round, each a Poisson-subsampled Gaussian mechanism."""

    round: int
    steps: int
    noise_multiplier: float
    sample_rate: float


@dataclass
class Ledger:
    """Every client's events, and the epsilon that they compose to."""

    plan: PrivacyPlan
    events: dict[int, list[Spent]] = field(default_factory=dict)

    def record(self, client: int, round: int, steps: int) -> None:
        """Enter `steps` steps that client took in `round` with its planned rate and noise."""
        planned = self.plan.clients[client]
        spent = Spent(round, steps, planned.noise_multiplier, planned.sample_rate)
        self.events.setdefault(client, []).append(spent)

    def rounds(self, client: int) -> int:
        """Return the number of rounds that the client has taken part in."""
        return len(self.events.get(client, []))

    def epsilon(self, client: int, further_steps: int = 0) -> float | None:
        """Return the epsilon spent, or after `further_steps` more steps; None without privacy."""
        if not self.plan.private:
            return None
        assert self.plan.delta is not None
        assert self.plan.accountant is not None
        planned = self.plan.clients[client]
        events = [(e.noise_multiplier, e.sample_rate, e.steps) for e in self.events.get(client, [])]
        events.append((planned.noise_multiplier, planned.sample_rate, further_steps))
        return epsilon(events, self.plan.delta, self.plan.accountant)

    def would_exceed(self, client: int, steps: int) -> bool:
        """Return whether `steps` more steps would take the client above its target."""
        if not self.plan.private:
            return False
        planned = self.plan.clients[client]
        taken = sum(e.steps for e in self.events.get(client, []))
        if taken + steps <= planned.steps_bound:
            return False  # within what the noise was calibrated for
        cost = self.epsilon(client, steps)
        return cost is not None and cost > (self.plan.epsilon or math.inf)

    def epsilon_max(self) -> float | None:
        """Return the largest epsilon that any client has spent; None without privacy."""
        spent = [self.epsilon(c.client) for c in self.plan.clients]
        known = [e for e in spent if e is not None]
        return max(known) if known else None

    def as_dict(self) -> dict[str, Any]:
        """Return plan, events and epsilon of every client as JSON-ready values."""
        clients = []
        for planned in self.plan.clients:
            events = self.events.get(planned.client, [])
            clients.append(
                {
                    **asdict(planned),
                    "rounds": len(events),
                    "steps": sum(e.steps for e in events),
                    "epsilon": self.epsilon(planned.client),
                    "events": [asdict(e) for e in events],
                }
            )
        return {**self.plan.as_dict(), "epsilon_max": self.epsilon_max(), "clients": clients}

    def load(self, state: Mapping[str, Any]) -> None:
        """Take over the events of `as_dict`."""
        self.events = {
            c["client"]: [Spent(**e) for e in c["events"]] for c in state["clients"] if c["events"]
        }
