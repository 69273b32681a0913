"""Orthonormal rows of W0's own row space: fedsvd.run adapter._target_=my_initialiser.Rows."""

from fedsvd.adapters import Initialiser
from fedsvd.lowrank import LowRank


class Rows(Initialiser):
    def factors(self, site):
        A = site.weight.svd().V[:, : site.rank].mT
        return LowRank(A, A.new_zeros(len(site.weight), site.rank))
