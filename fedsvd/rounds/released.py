"""What a round's released values say of the subspace and of the noise: post-processing alone.

Nothing here sees more than what clients released and what the public plan implies, so it costs no
privacy and may be published with the model.
"""

from collections.abc import Mapping, Sequence
from statistics import fmean
from typing import Any

from flwr.app import Message
from torch import Tensor

from fedsvd import records
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.pair import kind_of
from fedsvd.lowrank.subspace import moved
from fedsvd.rounds.run import Run


def row_spaces(run: Run, before: AdapterState) -> dict[str, float]:
    """Return how far the rows of A moved in the round and since the start, means over layers.

    `A_space`: the row spaces' chordal distance to those `before` the round, in [0, 1].
    `A_space_start`: to those of the adapter as it began. `A_rows`: of each row by itself, which sees
    turns within the space too. Nothing where there is no A, or its shape changes.
    """
    first, now = run.worker.initial.factors, run.state.factors
    pairs = [
        (first[layer].A, before.factors[layer].A, pair.A)
        for layer, pair in now.items()
        if layer in first and layer in before.factors
    ]
    if not pairs or any(a.shape != c.shape or b.shape != c.shape for a, b, c in pairs):
        return {}
    steps = [moved(b, c) for _, b, c in pairs]
    return {
        "A_space": fmean(space for space, _ in steps),
        "A_space_start": fmean(moved(a.to(c.device), c)[0] for a, _, c in pairs),
        "A_rows": fmean(rows for _, rows in steps),
    }


def noise_share(
    run: Run, sent: Mapping[str, Tensor], good: Sequence[Message], variance: float
) -> dict[str, float]:
    """Return `noise_share`: the part of the released mean update that is noise, in energy.

    The update is the weighted mean of the replies less what clients were `sent`, over all numbers
    that train. Noise of `variance` in each of n numbers has the expected energy n variance, which is
    divided by the energy found: about 1 where the update is noise alone, and above it by chance.
    Nothing for a head of subspaces, whose steps are no sums.
    """
    if not good or run.settings.model.head == "grassmann":
        return {}
    weights = [float(records.metrics_of(r)[records.WEIGHT]) for r in good]  # type: ignore[arg-type]
    replies = [records.from_record(records.arrays_of(r), run.worker.device) for r in good]
    found: Any = 0.0
    numbers = 0
    for name, start in sent.items():
        if kind_of(name) == "memory":
            continue
        mean = -start.double()
        for weight, reply in zip(weights, replies, strict=True):
            mean += weight / sum(weights) * reply[name].double()
        found, numbers = found + float(mean.square().sum()), numbers + mean.numel()
    return {"noise_share": numbers * variance / found} if found else {}
