"""Rules that average A and B each after a correction or a turn, against dense formulas in NumPy."""

import numpy as np
import pytest
import torch
from scipy.optimize import linear_sum_assignment, minimize

from fedsvd import strategies as S
from fedsvd.errors import InputError
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.lowrank.cosine import turned
from fedsvd.strategies.server import ServerOptimizer
from tests.strategies.cases import D_OUT, P, R, case, mean, product, run, updates, wrap


def fair(X, A, G, B, penalty):
    """Equation 8 of LoRA-FAIR on dense matrices."""
    M = X @ A
    return (M * G).sum() / np.linalg.norm(M) / np.linalg.norm(G) - penalty * np.linalg.norm(X - B)


@pytest.mark.parametrize("penalty", [0.0, 0.005, 0.01])
def test_lora_fair_maximises_the_cosine_less_the_penalty(penalty):
    *_, As, Bs, state, sent = case(shared_A=False, seed=2)
    new_A, new_B, _ = run(S.LoraFair(penalty), state, sent)
    A, B, G = mean(As), mean(Bs), product(As, Bs)
    np.testing.assert_allclose(new_A, A, atol=1e-12)
    found, rng = fair(new_B, A, G, B, penalty), np.random.default_rng(0)
    assert found > fair(B, A, G, B, penalty)

    def cost(x):
        return -fair(x.reshape(B.shape), A, G, B, penalty)

    for start in (new_B, B + 1e-3 * rng.normal(size=B.shape), B + 0.3 * rng.normal(size=B.shape)):
        best = minimize(cost, start.ravel(), method="BFGS", options={"gtol": 1e-9})
        assert -best.fun < found + 1e-9  # by brute force over all entries of B there is no better
    if penalty == 0:  # then G's own part in the row space of A, as near to B as its length can be
        whole = G @ np.linalg.pinv(A)
        line = (whole * B).sum() / (whole * whole).sum() * whole
        np.testing.assert_allclose(new_B, line, atol=1e-6)


def test_lora_fair_on_one_component_by_hand():
    """A = e1 and B = e1: cos and ||dB|| are those of plane vectors, and the ball is a circle."""
    A, B = np.array([[1.0, 0.0]]), np.array([[1.0], [0.0]])
    g = np.array([[np.cos(0.5)], [np.sin(0.5)]])
    twice = np.linalg.norm(2 * g)
    sent = [torch.tensor(x) for x in (B, A @ A.T, 2 * g)]
    # At distance rho the angle shrinks by arcsin(rho); d/d rho cos(0.5 - arcsin rho) = penalty.
    for penalty in (0.1, 0.3):
        X = turned(*sent, torch.tensor(twice), penalty).numpy()
        rho = np.linalg.norm(X - B)
        slope = np.sin(0.5 - np.arcsin(rho)) / np.sqrt(1 - rho**2)
        assert slope == pytest.approx(penalty, abs=1e-6)
    # A penalty above the slope sin(0.5) at 0 leaves B as it was averaged, to the bit.
    assert turned(*sent, torch.tensor(twice), 0.48).equal(sent[0])


def test_lora_fair_is_fedavg_for_clients_that_agree_or_have_learnt_nothing():
    A, B, *_, state, _ = case(shared_A=False)
    for Bs in ([B] * 3, [0 * B] * 3, [B, -2 / 3 * B, 0 * B]):
        new_A, new_B, _ = run(S.LoraFair(), state, updates([A] * 3, Bs))
        np.testing.assert_allclose(new_A, A, atol=1e-12)
        np.testing.assert_allclose(new_B, mean(Bs), atol=1e-12)
    for penalty, objective in ((-1, "cosine"), (0, "ridge"), (float("nan"), "cosine")):
        with pytest.raises(InputError, match=r"strategy\.penalty"):
            S.LoraFair(penalty, objective)
    with pytest.raises(InputError, match=r"strategy\.objective"):
        S.LoraFair(objective="cos")


def test_the_ridge_of_lora_fair_is_least_squares():
    *_, As, Bs, state, sent = case(shared_A=False)
    new_A, new_B, _ = run(S.LoraFair(penalty=0.3, objective="ridge"), state, sent)
    A, B = mean(As), mean(Bs)
    # Least squares on the stacked problem [A^T; sqrt(0.3) I] dB^T = [(G - B A)^T; 0].
    left = np.vstack([A.T, np.sqrt(0.3) * np.eye(R)])
    right = np.vstack([(product(As, Bs) - B @ A).T, np.zeros((R, D_OUT))])
    dB = np.linalg.lstsq(left, right, rcond=None)[0].T
    np.testing.assert_allclose(new_A, A, atol=1e-12)
    np.testing.assert_allclose(new_B, B + dB, atol=1e-12)
    # It is nearer to the mean of the products than the plain means are.
    G = product(As, Bs)
    assert np.linalg.norm(new_B @ new_A - G) < np.linalg.norm(B @ A - G)


def turn(X, Y, reflections):
    """The rotation of the plane, or reflection, that brings X R nearest to Y, by brute force."""
    t = np.linspace(0, 2 * np.pi, 40_001)
    c, s, best = np.cos(t), np.sin(t), (np.inf, None)
    for sign in (1, -1) if reflections else (1,):
        Rs = np.array([[c, -sign * s], [s, sign * c]]).transpose(2, 0, 1)
        cost = ((X @ Rs - Y) ** 2).sum((1, 2))
        i = int(cost.argmin())
        best = min(best, (cost[i], Rs[i]), key=lambda found: found[0])
    return best[1]


@pytest.mark.parametrize("seed", [0, 1])
@pytest.mark.parametrize("first", ["A", "B"])
@pytest.mark.parametrize("round", [1, 2, 3])
def test_fedrot_turns_by_one_factor_a_round_and_in_the_first_by_none(round, first, seed):
    A, B, As, Bs, state, sent = case(shared_A=False, seed=seed, round=round)
    # Bases of their own, and one a reflection, or there is little to turn.
    Qs = [np.linalg.qr(np.random.default_rng(k).normal(size=(R, R)))[0] for k in range(3)]
    As, Bs = (
        [q.T @ a for q, a in zip(Qs, As, strict=True)],
        [b @ q for q, b in zip(Qs, Bs, strict=True)],
    )
    sent = updates(As, Bs, round)
    new_A, new_B, _ = run(S.FedRot(first=first), state, sent)
    by_A = (round == 2) == (first == "A")
    turns = [turn(a.T, A.T, True) if by_A else turn(b, B, True)
             for a, b in zip(As, Bs, strict=True)]  # fmt: skip
    if round == 1:
        turns = [np.eye(R)] * 3
    expected_A = mean([r.T @ a for r, a in zip(turns, As, strict=True)])
    expected_B = mean([b @ r for r, b in zip(turns, Bs, strict=True)])
    np.testing.assert_allclose(new_A, expected_A, atol=1e-12 if round == 1 else 1e-3)
    np.testing.assert_allclose(new_B, expected_B, atol=1e-12 if round == 1 else 1e-3)


def test_soft_fedrot_goes_part_of_the_angle_and_never_reflects():
    A, B, *_, state, _ = case(shared_A=False, round=2)
    for angle, part in ((0.8, 0.4), (2.0, 0.6), (-1.2, 1.0)):
        c, s = np.cos(angle), np.sin(angle)
        Q = np.array([[c, s], [-s, c]])  # the client's basis: R* = Q^T turns it back by `angle`
        new_A, new_B, _ = run(S.FedRot(part), state, updates([Q.T @ A] * 3, [B @ Q] * 3, 2))
        # The projection of (1 - part) I + part R(angle) is the rotation by the angle of its sum.
        left = angle - np.arctan2(part * s, 1 - part + part * c)
        Q = np.array([[np.cos(left), np.sin(left)], [-np.sin(left), np.cos(left)]])
        np.testing.assert_allclose(new_A, Q.T @ A, atol=1e-12)
        np.testing.assert_allclose(new_B, B @ Q, atol=1e-12)
    flip = np.diag([1.0, -1.0])
    new_A, _, _ = run(S.FedRot(1.0), state, updates([flip @ A] * 3, [B @ flip] * 3, 2))
    np.testing.assert_allclose(new_A, turn((flip @ A).T, A.T, False).T @ flip @ A, atol=1e-3)
    assert np.linalg.norm(new_A - A) > 0.1
    new_A, _, _ = run(S.FedRot(), state, updates([flip @ A] * 3, [B @ flip] * 3, 2))
    np.testing.assert_allclose(new_A, A, atol=1e-12)  # the whole turn may reflect
    with pytest.raises(InputError, match=r"strategy\.strength"):
        S.FedRot(0)
    with pytest.raises(InputError, match=r"strategy\.first"):
        S.FedRot(first="C")


def test_comparing_a_and_b_at_once_turns_by_the_larger_and_fedrot_does_not():
    A, B, As, Bs, _, _ = case(shared_A=False, seed=1, round=3)
    products = {}
    for times in (1.0, 1000.0):
        state = wrap(times * A, B / times, 3)
        sent = updates([times * a for a in As], [b / times for b in Bs], 3)
        for rule in (S.FedRot(), S.Align("rotation", iterations=1)):
            new_A, new_B, _ = run(rule, state, sent)
            products[type(rule).__name__, times] = new_B @ new_A
    np.testing.assert_allclose(products["FedRot", 1000.0], products["FedRot", 1.0], atol=1e-11)
    by_A = run(S.FedRot(first="B"), wrap(A, B, 3), updates(As, Bs, 3))
    np.testing.assert_allclose(products["Align", 1000.0], by_A[1] @ by_A[0], atol=1e-5)
    assert np.abs(products["Align", 1000.0] - products["Align", 1.0]).max() > 1e-4


@pytest.mark.parametrize("method", ["permutation", "rotation"])
def test_alignment_undoes_what_clients_differ_by(method):
    A, B, *_, state, _ = case(shared_A=False)
    rng = np.random.default_rng(1)
    maps = [np.eye(R), np.eye(R)[::-1], np.eye(R)]
    if method == "rotation":
        maps = [np.linalg.qr(rng.normal(size=(R, R)))[0] for _ in P]
    sent = updates([m.T @ A for m in maps], [B @ m for m in maps])
    new_A, new_B, _ = run(S.Align(method), state, sent)
    np.testing.assert_allclose(new_A, A, atol=1e-12)
    np.testing.assert_allclose(new_B, B, atol=1e-12)


def test_permutation_alignment_is_the_best_assignment():
    A, B, As, Bs, state, _sent = case(shared_A=False, seed=3)
    swapped = [np.eye(R)[::-1] if k == 1 else np.eye(R) for k in range(3)]
    As = [m.T @ a for m, a in zip(swapped, As, strict=True)]
    Bs = [b @ m for m, b in zip(swapped, Bs, strict=True)]
    new_A, new_B, _ = run(S.Align("permutation", iterations=1), state, updates(As, Bs))
    out_A, out_B = [], []
    for a, b in zip(As, Bs, strict=True):
        cost = [[-(b[:, i] @ B[:, j] + a[i] @ A[j]) for j in range(R)] for i in range(R)]
        rows, columns = linear_sum_assignment(cost)
        order = rows[np.argsort(columns)]
        out_A.append(a[order])
        out_B.append(b[:, order])
    np.testing.assert_allclose(new_A, mean(out_A), atol=1e-12)
    np.testing.assert_allclose(new_B, mean(out_B), atol=1e-12)


def test_a_server_optimiser_follows_the_mean_of_the_turned_factors():
    *_, state, sent = case(shared_A=False, round=2)
    mean_state = S.FedRot().aggregate(state, sent)
    new = ServerOptimizer("momentum", lr=0.5).step(state, mean_state)
    old = state.factors["l"]
    expected = old.A + 0.5 * (mean_state.factors["l"].A - old.A)
    torch.testing.assert_close(new.factors["l"].A, expected)
    # Whatever basis a client's factors are in, the pseudo-gradient is the same.
    Q = torch.linalg.qr(torch.randn(R, R, generator=torch.Generator().manual_seed(0)).double())[0]
    pair = sent[0].state.factors["l"]
    other = S.Update(0, sent[0].weight, AdapterState({"l": LowRank(Q.mT @ pair.A, pair.B @ Q)}))
    again = S.FedRot().aggregate(state, [other, *sent[1:]])
    torch.testing.assert_close(again.factors["l"].A, mean_state.factors["l"].A)
