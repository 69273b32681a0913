"""FedRPCA: average what clients have in common, amplify what is their own."""

from collections.abc import Sequence
from typing import ClassVar, final

import torch

from fedsvd.errors import wrong
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.pursuit import robust_pca
from fedsvd.strategies.base import Strategy, Update, weighted_mean


@final
class FedRpca(Strategy):
    """Split the stacked client updates into L + S; add mean(L) + scale * mean(S).

    FedRPCA (Jhunjhunwala et al., arXiv 2506.01194). For each layer's A and B, the column k of M
    (entries, K) is client k's update of it; robust PCA gives the low rank L and the sparse S, in the
    state's dtype (16 bits count as 32). Means are weighted by p_k, but the split sees every client
    once, so weights are only partly respected. Where S is not 0, clients that send the same do not
    get it back: their S is scaled too. `scale` is fixed; the paper's schedule of it could not be
    checked, nor any official code.

    Dense noise has no low rank and goes to S: under noise this is close to FedAvg with the server
    rate `scale`, and with one message it is nothing else. So it is refused where the server has one.
    """

    trains: ClassVar[tuple[str, ...]] = ("A", "B")
    weighted = False
    idempotent = False
    compares_clients = True

    def __init__(self, scale: float = 2.0) -> None:
        if not 0 <= scale < float("inf"):
            raise wrong("strategy.scale", scale, "a number of at least 0")
        self.scale = scale

    def aggregate(self, state: AdapterState, updates: Sequence[Update]) -> AdapterState:
        """Return the state moved by the recombined updates; the head is the weighted mean."""
        mean = weighted_mean(state, updates)
        sent = [u.state.tensors() for u in updates]
        moved = {}
        for name, old in state.select(("A", "B")).items():
            if all(tensors[name] is old for tensors in sent):
                continue
            # What is stored in 16 bits is worked on in 32.
            work = torch.promote_types(old.dtype, torch.float32)
            M = torch.stack([t[name].reshape(-1) for t in sent]).to(work)
            M.sub_(old.reshape(-1).to(work))
            p = torch.tensor([u.weight for u in updates], dtype=work, device=old.device)
            L, S = robust_pca(M)
            new = old.double() + (p @ L + self.scale * (p @ S)).view(old.shape)
            moved[name] = new.to(old.dtype)
        return mean.update(moved)
