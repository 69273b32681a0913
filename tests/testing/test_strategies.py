"""The conformance kit: ours pass, planted faults fail with a sentence that names them."""

from dataclasses import replace

import pytest
import torch

from fedsvd import strategies
from fedsvd.lowrank import AdapterState, LowRank, average, refactorise
from fedsvd.strategies import FedAvg, Strategy, weighted_mean
from fedsvd.testing import check_strategy

BESIDE = ("PublicView", "ServerOptimizer", "Strategy", "Update", "weighted_extra", "weighted_mean")
OURS = [getattr(strategies, name) for name in strategies.__all__ if name not in BESIDE]
OPTIONS = [
    ("FedSVD", {"split": "balanced"}),
    ("FedSVD", {"period": 2}),
    ("FedSVD", {"period": 3}),
    ("FedSvdRefresh", {"tail": "fold"}),
    ("FedSvdRefresh", {"keep": 1}),
    ("FedSvdRefresh", {"keep": 0, "tail": "fold"}),
    ("FedSvdDct", {"tail": "fold"}),
    ("Align", {"method": "rotation", "iterations": 1}),
    ("RsvdDpd", {"ranks": 3}),
    ("HetLora", {"gamma": 0.5}),
    ("FedSvdRefresh", {"directions": "trailing", "tail": "fold"}),
    ("FedSvdRefresh", {"directions": "inputs", "keep": 1}),
    ("FedAsk", {"oversampling": 0, "seed": 3}),
]


@pytest.mark.parametrize("cls", OURS, ids=lambda c: c.__name__)
def test_ours_pass(cls):
    check_strategy(cls)


@pytest.mark.parametrize(("name", "options"), OPTIONS)
def test_ours_pass_with_options(name, options):
    check_strategy(getattr(strategies, name), **options)


class FirstClient(Strategy):
    idempotent = True

    def aggregate(self, state, updates):
        return replace(updates[0].state, round=state.round)


class Unweighted(Strategy):
    exact = False

    def aggregate(self, state, updates):
        return average([u.state for u in updates], [1.0] * len(updates), into=state)


class SaysExact(Strategy):
    trains = ("A", "B")
    exact = True

    def aggregate(self, state, updates):
        return weighted_mean(state, updates)


class SaysInexact(Strategy):
    def aggregate(self, state, updates):
        return weighted_mean(state, updates)


class ChangesWhatItDoesNotSend(Strategy):
    broadcasts = ("B",)
    exact = True

    def aggregate(self, state, updates):
        return refactorise(weighted_mean(state, updates))


class Remembers(Strategy):
    exact = True

    def __init__(self):
        self.last = None

    def aggregate(self, state, updates):
        mean = weighted_mean(state, updates)
        out = mean if self.last is None else average([mean, self.last], [0.5, 0.5])
        self.last = out
        return out


class DrawsGlobally(Strategy):
    def aggregate(self, state, updates):
        noise = {n: t + torch.randn_like(t) for n, t in state.select("B").items()}
        return weighted_mean(state, updates).update(noise)


class WritesInPlace(Strategy):
    exact = True

    def aggregate(self, state, updates):
        for u in updates[1:]:
            for layer, pair in u.state.factors.items():
                updates[0].state.factors[layer].B.add_(pair.B)
        return weighted_mean(state, updates)


class Drifts(Strategy):
    def aggregate(self, state, updates):
        mean = weighted_mean(state, updates)
        return mean.update({n: 1.1 * t for n, t in mean.select("B").items()})


class Single(Strategy):
    exact = True

    def aggregate(self, state, updates):
        mean = weighted_mean(state, updates)
        return mean.update({n: t.float() for n, t in mean.tensors().items()})


class Grows(Strategy):
    def aggregate(self, state, updates):
        mean = weighted_mean(state, updates)
        more = {
            k: LowRank(torch.cat([p.A, p.A]), torch.cat([p.B, 0 * p.B], dim=1))
            for k, p in mean.factors.items()
        }
        return AdapterState(more, mean.extra, mean.round)


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (FirstClient, "FirstClient depends on the order of the clients."),
        (Unweighted, "Unweighted declares weighted = True, but"),
        (SaysExact, "SaysExact declares exact = True, but"),
        (SaysInexact, "SaysInexact declares exact = False, but it makes W"),
        (ChangesWhatItDoesNotSend, "changes first.A, which it does not broadcast"),
        (Remembers, "Remembers remembers something beside the state"),
        (DrawsGlobally, "DrawsGlobally draws from the global random generator."),
        (WritesInPlace, "WritesInPlace changes tensors that it was given."),
        (Drifts, "Drifts declares idempotent = True, but"),
        (Single, "Single turns first.A from torch.float64 into torch.float32."),
        (Grows, "Grows changes the shape of first.A."),
    ],
    ids=lambda v: v.__name__ if isinstance(v, type) else "",
)
def test_planted_faults_are_found(cls, sentence):
    with pytest.raises(AssertionError) as found:
        check_strategy(cls)
    assert sentence in str(found.value)
    assert "\n" not in str(found.value)


def test_a_client_with_nan_must_be_refused_before_the_strategy(monkeypatch):
    from fedsvd.testing import strategies as testing

    monkeypatch.setattr(testing, "fault", lambda message, sent: None)
    with pytest.raises(AssertionError, match="FedAvg would be given a client with NaN in"):
        check_strategy(FedAvg)
