"""From the name of a task's kind (`task=`) to its objective."""

from collections.abc import Mapping

from fedsvd.objectives.base import Objective
from fedsvd.objectives.causal import Causal
from fedsvd.objectives.choice import Choice
from fedsvd.objectives.classification import Classification

OBJECTIVES: Mapping[str, Objective] = {
    "classification": Classification(),
    "causal": Causal(),
    "choice": Choice(),
}


def objective_of(name: str) -> Objective:
    """Return the objective that `task=NAME` names."""
    return OBJECTIVES[name]
