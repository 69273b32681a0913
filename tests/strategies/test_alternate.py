"""FedSVD-Alternate against a dense SVD, and where the product does not have all its directions."""

import numpy as np
import pytest
import torch

from fedsvd.errors import InputError
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.strategies import FedSvdAlternate, Update
from fedsvd.strategies.build import build_strategy
from fedsvd.strategies.use import check_use
from tests.strategies.cases import D_IN, D_OUT, P, R, case, product, run, updates, wrap


def test_the_side_takes_turns():
    assert [FedSvdAlternate().side(n) for n in range(1, 5)] == ["B", "A", "B", "A"]
    assert FedSvdAlternate(hold=2).trains_in(2) == ("B",)
    assert [FedSvdAlternate(hold=2, first="A").side(n) for n in range(1, 6)] == list("AABBA")
    for options, key in (({"hold": 0}, "hold"), ({"first": "C"}, "first")):
        with pytest.raises(InputError, match=rf"strategy\.{key}"):
            FedSvdAlternate(**options)


@pytest.mark.parametrize("round", [1, 2])
def test_a_round_is_the_mean_with_the_factor_that_rests_next_orthonormal(round):
    A, B, As, Bs, state, _ = case(shared_A=False, round=round)
    if round == 1:  # B trained with one A; A trains next
        As = [A] * len(P)
    else:
        Bs = [B] * len(P)
    new_A, new_B, _ = run(FedSvdAlternate(), state, updates(As, Bs, round))
    G = product(As, Bs)
    U, s, Vh = np.linalg.svd(G)
    np.testing.assert_allclose(new_B @ new_A, G, atol=1e-12)
    if round == 1:
        np.testing.assert_allclose(np.abs(new_B), np.abs(U[:, :R]), atol=1e-10)
        np.testing.assert_allclose(new_A @ new_A.T, np.diag(s[:R] ** 2), atol=1e-10)
    else:
        np.testing.assert_allclose(np.abs(new_A), np.abs(Vh[:R]), atol=1e-10)
        np.testing.assert_allclose(new_B.T @ new_B, np.diag(s[:R] ** 2), atol=1e-10)


@pytest.mark.parametrize("rank", [0, 1])
def test_what_rests_is_orthonormal_also_where_the_product_lacks_directions(rank):
    """With B = 0, and with B of rank 1, as when clients learnt nothing, or one thing."""
    A, B, *_ = case(shared_A=True)
    B = np.outer(B[:, 0], [0.6, 0.8]) * rank
    start = wrap(A, B)
    sent = [Update(0, 1.0, start)]
    new_A, new_B, _ = run(FedSvdAlternate(seed=3), start, sent)
    np.testing.assert_allclose(new_B.T @ new_B, np.eye(R), atol=1e-12)
    np.testing.assert_allclose(new_B @ new_A, B @ A, atol=1e-12)
    assert (new_A[rank:] == 0).all()
    again = run(FedSvdAlternate(seed=3), start, sent)
    assert (new_B == again[1]).all()
    other = run(FedSvdAlternate(seed=4), start, sent)[1]
    assert np.abs(new_B[:, rank:] - other[:, rank:]).max() > 0.01  # a draw, not the axes
    stream = torch_stream(3, Purpose.SUBSPACE, 2, "l")
    G = torch.randn(R - rank, D_OUT, generator=stream, dtype=torch.float64).numpy().T
    u = new_B[:, :rank]
    Q = np.linalg.qr(G - u @ (u.T @ G))[0]
    np.testing.assert_allclose(np.abs(new_B[:, rank:]), np.abs(Q), atol=1e-10)


def test_a_factor_that_rests_keeps_its_own_directions_while_the_product_is_zero():
    """With hold=2 and B still 0 after a round, A's rows are those that the adapter chose."""
    A, B, *_ = case(shared_A=True)
    zero = wrap(A, 0 * B)
    new_A, new_B, _ = run(FedSvdAlternate(hold=2), zero, [Update(0, 1.0, zero)])
    Q = np.linalg.qr(A.T)[0]
    np.testing.assert_allclose(new_A.T @ new_A, Q @ Q.T, atol=1e-12)
    assert (new_B == 0).all()


@pytest.mark.parametrize("first", ["A", "B"])
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
def test_the_first_round_begins_with_its_resting_factor_orthonormal(first, dtype):
    A, B, *_ = case(shared_A=True)
    state = AdapterState(
        {"l": LowRank(torch.tensor(A, dtype=dtype), torch.zeros(D_OUT, R).to(dtype))}
    )
    pair = FedSvdAlternate(first=first).begin(state).factors["l"]
    assert pair.A.dtype == pair.B.dtype == dtype
    rests = pair.A.mT if first == "B" else pair.B
    torch.testing.assert_close(rests.mT @ rests, torch.eye(R, dtype=dtype), atol=1e-6, rtol=0)
    assert not (pair.B if first == "B" else pair.A).any()  # so A never trains against B = 0
    # A B of rank 1 in float32 is one to its precision, not to float64's.
    deficient = torch.outer(torch.tensor(B[:, 0]), torch.tensor([0.6, 0.8])).to(dtype)
    state = AdapterState({"l": LowRank(torch.tensor(A, dtype=dtype), deficient)})
    pair = FedSvdAlternate(first="A").begin(state).factors["l"]
    assert not pair.A[1].any()
    assert float((pair.B @ pair.A - deficient @ state.factors["l"].A).norm()) < 1e-5


def test_the_gauge_makes_it_an_alternating_projection():
    """One exact step on each side is subspace iteration: it finds the leading singular pairs."""
    rng = np.random.default_rng(3)
    U, V = np.linalg.qr(rng.normal(size=(D_OUT, R)))[0], np.linalg.qr(rng.normal(size=(D_IN, R)))[0]
    T = 5 * U @ V.T + 0.05 * rng.normal(size=(D_OUT, D_IN))
    rule, state = FedSvdAlternate(), wrap(rng.normal(size=(R, D_IN)), np.zeros((D_OUT, R)))
    state = rule.begin(state)
    for number in range(1, 9):
        state = AdapterState(state.factors, {}, number)
        pair = state.factors["l"]
        t = torch.tensor(T)
        step = {"l.B": t @ pair.A.mT} if number % 2 else {"l.A": pair.B.mT @ t}
        state = rule.aggregate(state, [Update(0, 1.0, state.update(step))])
    s = np.linalg.svd(T)[1]
    best = np.linalg.norm(s[R:])
    assert np.linalg.norm(state.factors["l"].product().numpy() - T) == pytest.approx(best, rel=1e-6)


def test_a_factor_that_would_never_train_is_refused(settings):
    for name in ("fedsvd_alternate", "rolora"):
        for factors, other in (("B", "A"), ("A", "B")):
            chosen = settings(f"strategy={name}", f"training.factors={factors}")
            with pytest.raises(InputError, match=rf"training\.factors: .*train {other} alone in"):
                check_use(chosen, build_strategy(chosen.strategy))
        chosen = settings(f"strategy={name}", "training.factors=AB")
        check_use(chosen, build_strategy(chosen.strategy))
    chosen = settings("strategy=fedsvd", "training.factors=A")
    check_use(chosen, build_strategy(chosen.strategy))
