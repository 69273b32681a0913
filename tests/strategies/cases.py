"""A tiny case in NumPy, and what a rule makes of it."""

import numpy as np
import torch

from fedsvd import strategies as S
from fedsvd.lowrank import AdapterState, LowRank

P = np.array([0.2, 0.3, 0.5])
D_OUT, D_IN, R = 5, 7, 2


def case(shared_A, seed=0, round=1):
    """A state and three clients' factors, in NumPy; A is the state's where it is shared."""
    rng = np.random.default_rng(seed)
    A, B = rng.normal(size=(R, D_IN)), rng.normal(size=(D_OUT, R))
    As = [A if shared_A else A + 0.4 * rng.normal(size=A.shape) for _ in P]
    Bs = [B + 0.4 * rng.normal(size=B.shape) for _ in P]
    return A, B, As, Bs, wrap(A, B, round), updates(As, Bs, round)


def wrap(A, B, round=1):
    return AdapterState({"l": LowRank(torch.tensor(A), torch.tensor(B))}, {}, round)


def updates(As, Bs, round=1):
    return [S.Update(k, float(P[k]), wrap(As[k], Bs[k], round)) for k in range(len(As))]


def run(rule, state, sent):
    new = rule.aggregate(state, sent)
    pair = new.factors["l"]
    W = new.base["l"].numpy() if new.base else 0.0
    return pair.A.numpy(), pair.B.numpy(), W


def mean(xs):
    return sum(p * x for p, x in zip(P, xs, strict=True))


def product(As, Bs):
    return mean([b @ a for a, b in zip(As, Bs, strict=True)])
