"""The average of the models after rounds, which is evaluated and exported while clients go on.

It is a function of states that were released: post-processing, no extra budget. Clients, strategy and
journal never see it, so a run's own states are those of a run without it.
"""

from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor

from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.blend import Average, blend, like, started
from fedsvd.rounds.run import Run

TENSORS = "average/"  # before the names of its tensors in a checkpoint


def include(run: Run) -> None:
    """Take the run's state into its average, if the settings have the round in it."""
    settings = run.settings.averaging
    if not settings.holds(run.state.round, run.rounds):
        return
    if run.average is None:
        run.average = Average(started(run.state), 1.0)
        return
    kept = settings.decay if settings.name == "ema" else 1.0
    weight = kept * run.average.weight + 1
    run.average = Average(blend(run.average.state, run.state, 1 / weight), weight)


def model_state(run: Run) -> AdapterState:
    """Return what is evaluated and exported: the average, or the last state where there is none."""
    return run.state if run.average is None else like(run.average.state, run.state)


def describe(run: Run) -> str:
    """Return what is averaged, as a phrase."""
    settings = run.settings.averaging
    if settings.active and run.average is None:
        return "none: the run ended before the first round to be averaged"
    return settings.describe(run.rounds)


def packed(average: Average | None) -> tuple[dict[str, Tensor], dict[str, Any] | None]:
    """Return an average as named tensors and JSON values."""
    if average is None:
        return {}, None
    tensors = {f"{TENSORS}{n}": t for n, t in average.state.tensors().items()}
    return tensors, {"weight": average.weight, "round": average.state.round}


def unpacked(
    tensors: Mapping[str, Tensor], told: Mapping[str, Any] | None, device: torch.device
) -> Average | None:
    """Return the average; inverse of `packed`. KeyError for what is not there."""
    if told is None:
        return None
    found = {
        n.removeprefix(TENSORS): t.to(device) for n, t in tensors.items() if n.startswith(TENSORS)
    }
    state = AdapterState.from_tensors(found, int(told["round"]))
    return Average(state, float(told["weight"]))
