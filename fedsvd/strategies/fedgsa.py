"""FedGSA: project the mean update onto the clients' common output subspace."""

from collections.abc import Sequence
from dataclasses import replace
from typing import ClassVar, final

import torch
from torch import Tensor

from fedsvd.lowrank import AdapterState, LowRank, refactorise_pairs
from fedsvd.strategies.base import Strategy, Update, weighted_mean


@final
class FedGsa(Strategy):
    """Refactorise U_g U_g^T B A, U_g the leading r eigenvectors of sum p_k U_k U_k^T.

    FedGSA (Zheng et al., arXiv 2608.03267), from a secondary source: U_k are the left singular
    vectors of client k's B_k A, B = sum p_k B_k, and U_g^T B A = U S V^T gives A = V^T and B = U_g
    U S. U_g are the left singular vectors of the stacked p_k^1/2 U_k, so no d_out x d_out projector
    is formed. Exact only where the clients' column spaces agree; with one client it is FedSVD.

    Not verified, as neither paper nor code could be read: that projectors and mean have the weights
    p_k, that U_k has all directions of B_k A and not fewer, that A starts as FedSVD's does, and
    that clients train B alone without privacy too.
    """

    needs_equal_A: ClassVar[bool] = True
    any_scale = True

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the projected mean, refactorised, and the mean of the head."""
        mean, projected = weighted_mean(state, updates), {}
        for layer, pair in mean.factors.items():
            bases = [u.weight**0.5 * _columns(u.state.factors[layer]) for u in updates]
            U, S, _ = torch.linalg.svd(torch.cat(bases, dim=1), full_matrices=False)
            Ug = U[:, : pair.rank][:, S[: pair.rank] > 1e-9]
            B = Ug @ (Ug.mT @ pair.B.double())
            projected[layer] = LowRank(pair.A.double(), B)
        dtype = next(iter(mean.factors.values())).A.dtype if mean.factors else None
        return replace(mean, factors=refactorise_pairs(projected, dtype=dtype))


def _columns(pair: LowRank) -> Tensor:
    """Return an orthonormal basis (d_out, rank of B A) of the columns of B A, in float64."""
    Q, R = torch.linalg.qr(pair.B.double())
    Ra = torch.linalg.qr(pair.A.double().mT, mode="r").R
    U, S, _ = torch.linalg.svd(R @ Ra.mT)
    # Directions in the noise of a float32 factor are no subspace that a client learnt.
    floor = 1e-6 * S[:1].clamp_min(1e-300)
    return Q @ U[:, : len(S)][:, floor < S]
