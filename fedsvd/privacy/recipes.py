"""What clients' noise is calibrated for: what they do at most, or what a published recipe assumed.

`privacy.accounting` chooses. "ours" takes a client's true sample rate q and the bound on its steps,
which the draw enforces. The others are those of the code of FedSVD (Lee et al., NeurIPS 2025; its
repository seanie12/fed-svd, read at these commits), and bound nothing:
- "paper", the code's first version, 92a0785: rate (m / K) q over all R tau steps of a run of R rounds
  of tau local steps, m clients of K in each. That counts the drawing of clients as a sampling of
  examples, though whoever sees a round knows who takes part.
- "paper_mean", its later version, 36650e2: rate q over R tau m / K steps, what a client takes on
  average; uniform draws take some clients more often.
What clients then really spend is composed from the steps that they took, as ever, and told beside the
target, which it may exceed.
"""

import math
from collections.abc import Sequence

from fedsvd.settings import Settings

Assumed = tuple[list[float], int]  # a sample rate for each client, and a number of steps


def calibrated_for(settings: Settings, rates: Sequence[float], steps: int) -> Assumed:
    """Return the sample rates and the number of steps that the clients' noise is made for.

    `rates` are the true ones, `steps` is the bound on any client's steps: with "ours" they are it.
    """
    clients, accounting = settings.clients, settings.privacy.accounting
    if settings.privacy.unit == "none" or accounting == "ours":
        return list(rates), steps
    m = clients.number if clients.participation == "all" else clients.per_round
    share = m / clients.number
    whole = settings.rounds * settings.training.local_steps
    if accounting == "paper":
        return [share * rate for rate in rates], whole
    return list(rates), math.ceil(whole * m / clients.number)
