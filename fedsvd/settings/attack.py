"""Clients that do harm, to measure robust aggregation by."""

import math
from dataclasses import dataclass

from fedsvd.errors import wrong
from fedsvd.settings.checks import at_least, choice, positive


@dataclass(frozen=True)
class AttackSettings:
    """What the clients in `clients` do instead of what they should; see configs/attack/."""

    name: str = "none"
    clients: tuple[int, ...] = ()
    scale: float = 1.0  # of the update, for sign_flip and scaled
    std: float = 1.0  # of the noise, for gaussian

    def __post_init__(self) -> None:
        choice("attack.name", self.name, ATTACKS)
        for client in self.clients:
            at_least("attack.clients", client, 0)
        if self.name != "none" and not self.clients:
            raise wrong("attack.clients", [], "at least one client, such as [0]")
        positive("attack.scale", self.scale)
        if not 0 <= self.std < math.inf:
            raise wrong("attack.std", self.std, "0 or more")


ATTACKS = ("gaussian", "label_flip", "non_finite", "none", "scaled", "sign_flip")
