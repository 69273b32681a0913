"""Median of the clients' B: in this folder, fedsvd.run strategy._target_=my_strategy.Median."""

import torch

from fedsvd.strategies import Strategy


class Median(Strategy):
    broadcasts, weighted = ("B",), False  # clients derive A from the seed; weights are not used

    def aggregate(self, state, updates):
        sent = [u.state.select(("B", "extra")) for u in updates]
        middle = {n: torch.stack([s[n] for s in sent]).quantile(0.5, dim=0) for n in sent[0]}
        return state.update(middle)
