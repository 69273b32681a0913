"""FedAvg, FFA and FedSVD on one layer, against values worked out with NumPy."""

import numpy as np
import pytest
import torch

from fedsvd.errors import InputError
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.strategies import FFA, FedAvg, FedSVD, Update

A0 = [[2.0, 0.0, 0.0]]
B1, B2 = [[1.0], [0.0]], [[0.0], [4.0]]


def state(A, B, round=1):
    return AdapterState({"l": LowRank(torch.tensor(A), torch.tensor(B))}, {}, round)


def updates(*pairs):
    return [Update(k, w, state(A, B)) for k, (w, A, B) in enumerate(pairs)]


def test_fedavg_averages_each_factor():
    new = (
        FedAvg()
        .aggregate(
            state(A0, B1), updates((0.25, [[4.0, 0.0, 0.0]], B1), (0.75, [[0.0, 8.0, 0.0]], B2))
        )
        .factors["l"]
    )
    np.testing.assert_allclose(new.A.numpy(), [[1.0, 6.0, 0.0]])
    np.testing.assert_allclose(new.B.numpy(), [[0.25], [3.0]])


def test_ffa_averages_b_and_keeps_a():
    new = FFA().aggregate(state(A0, B1), updates((0.25, A0, B1), (0.75, A0, B2))).factors["l"]
    assert torch.equal(new.A, torch.tensor(A0))
    np.testing.assert_allclose(new.B.numpy(), [[0.25], [3.0]])


def test_fedsvd_refactorises_the_mean():
    new = FedSVD().aggregate(state(A0, B1), updates((0.25, A0, B1), (0.75, A0, B2))).factors["l"]
    # B A = [[.5, 0, 0], [6, 0, 0]]: V = e1, U S = (.5, 6).
    np.testing.assert_allclose(new.A.numpy(), [[1.0, 0.0, 0.0]], atol=1e-7)
    np.testing.assert_allclose(new.B.numpy(), [[0.5], [6.0]], rtol=1e-6)


def test_fedsvd_period():
    rule = FedSVD(period=2)
    odd = rule.aggregate(state(A0, B1, round=1), updates((1.0, A0, B2))).factors["l"]
    even = rule.aggregate(state(A0, B1, round=2), updates((1.0, A0, B2))).factors["l"]
    assert torch.equal(odd.A, torch.tensor(A0))
    np.testing.assert_allclose(even.A.numpy(), [[1.0, 0.0, 0.0]])
    with pytest.raises(InputError, match=r"strategy\.period"):
        FedSVD(period=0)
