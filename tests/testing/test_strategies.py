"""The conformance kit: ours pass, planted faults fail with a sentence that names them."""

from dataclasses import replace

import pytest
import torch

from fedsvd import strategies
from fedsvd.lowrank import AdapterState, LowRank, average, norm, refactorise
from fedsvd.lowrank.align import rotation
from fedsvd.lowrank.ranks import truncate
from fedsvd.records import arrays_of, from_record, to_record, usable
from fedsvd.strategies import FedAvg, Strategy, Update, weighted_mean
from fedsvd.strategies.align import aligned_mean
from fedsvd.strategies.fedex import mean_product
from fedsvd.testing import check_strategy

BESIDE = (
    "NoiseView",
    "PublicView",
    "ServerOptimizer",
    "Strategy",
    "Update",
    "weighted_extra",
    "weighted_mean",
)
OURS = [getattr(strategies, name) for name in strategies.__all__ if name not in BESIDE]
OPTIONS = [
    ("FedSVD", {"split": "balanced"}),
    ("FedSVD", {"period": 2}),
    ("FedSVD", {"period": 3}),
    ("FedSVD", {"strength": 1.0}),
    ("FedSVD", {"strength": 0.5, "period": 7}),
    ("FFA", {"strength": 0.3}),
    ("FedSvdAlternate", {"strength": 1.0}),
    ("FedSvdAlternate", {"hold": 3, "first": "A", "strength": 0.1}),
    ("FedSvdRefresh", {"tail": "fold"}),
    ("FedSvdRefresh", {"keep": 1}),
    ("FedSvdRefresh", {"period": 5}),
    ("FedSvdDct", {"period": 10}),
    ("FedSvdRefresh", {"keep": 0, "tail": "fold"}),
    ("FedSvdDct", {"tail": "fold"}),
    ("Align", {"method": "rotation", "iterations": 1}),
    ("RsvdDpd", {"ranks": 3}),
    ("HetLora", {"gamma": 0.5}),
    ("FedSvdRefresh", {"directions": "trailing", "tail": "fold"}),
    ("FedSvdRefresh", {"directions": "inputs", "keep": 1}),
    ("FedAsk", {"oversampling": 0, "seed": 3}),
    ("FedAsk", {"oversampling": 4}),
    ("FedRot", {"strength": 0.5, "first": "B"}),
    ("FedSa", {"head": "own"}),
    ("LoraFair", {"objective": "ridge"}),
    ("LoraFair", {"penalty": 0}),
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


class ForgetsTheBase(Strategy):
    """FLoRA that puts each round's products in the place of those before."""

    trains, broadcasts, exact = ("A", "B"), ("A", "B", "W"), True

    def aggregate(self, state, updates):
        factors = {n: LowRank(p.A, 0 * p.B) for n, p in state.factors.items()}
        base = {n: mean_product(n, updates).to(p.B.dtype) for n, p in state.factors.items()}
        return replace(weighted_mean(state, updates), factors=factors, base=base)


class SoundInEvenRounds(Strategy):
    exact = True

    def aggregate(self, state, updates):
        mean = weighted_mean(state, updates)
        times = 1 + state.round % 2
        return mean.update({n: times * t for n, t in mean.select("B").items()})


class SaysAverages(Strategy):
    averages = exact = True

    def aggregate(self, state, updates):
        return refactorise(weighted_mean(state, updates))


class TurnsAtOnce(Strategy):
    """FedRot-LoRA that turns in the first round too, where it says that it does not."""

    trains, averages, any_basis = ("A", "B"), True, 2
    by = "A"

    def aggregate(self, state, updates):
        return aligned_mean(state, updates, state, rotation, self.by)


class TurnsByBoth(TurnsAtOnce):
    """One Procrustes problem of A and B together: whichever is larger decides."""

    any_basis, any_scale, by = 1, True, ("A", "B")


class TurnsNothing(TurnsAtOnce):
    def aggregate(self, state, updates):
        return weighted_mean(state, updates)


class TurnsToTheStart(TurnsAtOnce):
    """What it turns to is the state that the run began with, in every round."""

    any_basis = 1

    def aggregate(self, state, updates):
        first = {n: state.memory.get(n, t) for n, t in state.select(("A", "B")).items()}
        new = aligned_mean(state, updates, state.update(first), rotation, "AB"[state.round % 2])
        return replace(new, memory=first)


class WeighsTwice(Strategy):
    """HetLoRA with p_k, and once more p_k, where it says that the norms alone are the weights."""

    trains, weightless, weighted = ("A", "B"), True, False

    def aggregate(self, state, updates):
        norms = [[float(norm(p)) for p in u.state.factors.values()] for u in updates]
        p = [u.weight**2 * (1e-9 + sum(each)) for u, each in zip(updates, norms, strict=True)]
        return average([u.state for u in updates], p, into=state)


class DividesByWhatIsZero(Strategy):
    exact = True

    def aggregate(self, state, updates):
        mean = weighted_mean(state, updates)
        same = {n: t / state.tensors()[n].norm() for n, t in mean.select("B").items()}
        return mean.update({n: t * state.tensors()[n].norm() for n, t in same.items()})


class OneRank(Strategy):
    any_rank = exact = True

    def aggregate(self, state, updates):
        return weighted_mean(state, updates)


class Cuts(Strategy):
    """The lowest rank of the clients for all."""

    any_rank = True
    exact = True

    def aggregate(self, state, updates):
        rank = min(p.rank for u in updates for p in u.state.factors.values())
        cut = [truncate(u.state, rank) for u in updates]
        return average(cut, [u.weight for u in updates], into=truncate(state, rank))


class LeavesTheHead(Strategy):
    exact = True

    def aggregate(self, state, updates):
        return replace(weighted_mean(state, updates), extra=state.extra)


class TakesEveryReply(Strategy):
    """A reply loop of its own, that does not look at what came."""

    exact = True

    def aggregate(self, state, updates):
        return weighted_mean(state, updates)

    def aggregate_train(self, server_round, replies):
        sent = [from_record(arrays_of(r)) for r in replies]
        updates = [Update(k, 1 / len(sent), self._state.update(t)) for k, t in enumerate(sent)]
        return to_record(self.aggregate(self._state, updates).tensors()), None


class AsTheyArrive(TakesEveryReply):
    def aggregate_train(self, server_round, replies):
        return super().aggregate_train(server_round, [r for r in replies if usable(r)])


@pytest.mark.parametrize(
    ("cls", "sentence"),
    [
        (TurnsAtOnce, "any_basis = 2, but in round 1 already the basis"),
        (TurnsByBoth, "TurnsByBoth declares any_scale = True, but in round 1 W + B A is another"),
        (
            TurnsNothing,
            "any_basis = 2, but in round 2 the basis that a client's factors are in matt",
        ),
        (TurnsToTheStart, "but in round 2 it gives first.A another basis than that of the state"),
        (
            WeighsTwice,
            "WeighsTwice declares weightless = True, but in round 1 first depends on",
        ),
        (DividesByWhatIsZero, "returns values that are not finite in a first round, where B is 0."),
        (ForgetsTheBase, "ForgetsTheBase declares idempotent = True, but"),
        (SoundInEvenRounds, "SoundInEvenRounds declares idempotent = True, but"),
        (SaysAverages, "SaysAverages declares averages = True, but it gives first.A another basis"),
        (OneRank, "OneRank declares any_rank = True, but fails for clients of ranks (1, 2, 3, 2)"),
        (Cuts, "Cuts turns rank 3 of first into 1 for clients of ranks (1, 2, 3, 2)."),
        (LeavesTheHead, "LeavesTheHead declares idempotent = True, but"),
        (TakesEveryReply, "TakesEveryReply lets a client with NaN into its result"),
        (AsTheyArrive, "or goes by the order of arrival."),
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
