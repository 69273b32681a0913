"""What a check found of one property, in words."""

import math
from dataclasses import dataclass

from scipy.stats import norm

# Of a single check wrongly flagging correct code. There are 16 in an audit, so that fewer than one
# in a thousand audits of correct code is flagged.
LEVEL = 5e-5
SIGMAS = float(norm.isf(LEVEL / 2))  # as many standard errors, about 4


@dataclass(frozen=True)
class Verdict:
    """A property, whether what was measured contradicts what theory says, and both in words.

    flagged is None where the property could not be looked at in this configuration.
    """

    part: str  # "mechanism" or "pipeline"
    name: str
    flagged: bool | None
    measured: str
    theory: str


def beyond(found: float, wanted: float, se: float, slack: float = 0.0) -> bool:
    """Return whether `found` is off by more than SIGMAS standard errors and `slack` * `wanted`."""
    if not math.isfinite(found):
        return True
    off = abs(found - wanted)
    return off > SIGMAS * se and off > slack * abs(wanted)
