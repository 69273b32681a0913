"""The algebra of pairs (A, B): averaging, exact refactorisation, distances.

Nothing here knows of Flower, of transformers or of files.
"""

from fedsvd.lowrank.average import average
from fedsvd.lowrank.distance import inner, norm, relative_distance, singular_values, spectra
from fedsvd.lowrank.pair import AdapterState, LowRank
from fedsvd.lowrank.refactor import refactorise, refactorise_pairs
from fedsvd.lowrank.stack import difference, weighted_sum

__all__ = [
    "AdapterState",
    "LowRank",
    "average",
    "difference",
    "inner",
    "norm",
    "refactorise",
    "refactorise_pairs",
    "relative_distance",
    "singular_values",
    "spectra",
    "weighted_sum",
]
