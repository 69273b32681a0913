"""Conformance kits: one line tells an author whether a class keeps its promises."""

from fedsvd.testing.adapters import check_adapter
from fedsvd.testing.cases import distance, make_state, make_updates, total
from fedsvd.testing.strategies import check_strategy

__all__ = [
    "check_adapter",
    "check_strategy",
    "distance",
    "make_state",
    "make_updates",
    "total",
]
