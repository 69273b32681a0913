"""Strategies whose clients train some rank components, and cuts of the mean product, in NumPy."""

from dataclasses import replace

import numpy as np
import pytest
import scipy.linalg
import torch

from fedsvd import strategies as S
from fedsvd.client.components import Selection, drawn, fold, importance, most_important
from fedsvd.errors import InputError
from fedsvd.lowrank import AdapterState, LowRank
from fedsvd.strategies.ilora import qr
from tests.strategies.cases import D_IN, D_OUT, P, R, case, mean, product, run, updates, wrap


@pytest.mark.parametrize(
    ("threshold", "kept"), [(0.5, 1), (0.76, 1), (0.77, 2), (0.95, 2), (0.96, 3), (1.0, 3)]
)
def test_florist_keeps_the_fewest_singular_values_that_hold_the_energy(threshold, kept):
    # The clients' products are 4 e1 f1, 2 e2 f2 and e3 f3 over their weights: S = 4, 2, 1, and the
    # shares of energy are 16, 20 and 21 of 21: 0.762, 0.952, 1.
    As, Bs = [], []
    for k, size in enumerate((4.0, 2.0, 1.0)):
        a, b = np.zeros((1, D_IN)), np.zeros((D_OUT, 1))
        a[0, k], b[k, 0] = size, 1 / P[k]
        As.append(a)
        Bs.append(b)
    *_, state, _ = case(shared_A=False)
    new_A, new_B, W = run(S.Florist(threshold, seed=1), state, updates(As, Bs))
    expected = np.zeros((D_OUT, D_IN))
    expected[range(kept), range(kept)] = (4.0, 2.0, 1.0)[:kept]
    np.testing.assert_allclose(W, expected, atol=1e-12)
    flora = run(S.Flora(seed=1), state, updates(As, Bs))
    assert (new_A == flora[0]).all()
    assert (new_B == 0).all()


def test_florist_cuts_what_numpy_cuts_and_adds_it_to_what_was_there():
    *_, As, Bs, state, sent = case(shared_A=False)
    U, s, Vh = np.linalg.svd(product(As, Bs))
    energy = np.cumsum(s**2) / np.sum(s**2)
    p = int(np.argmax(energy >= 0.9)) + 1
    assert p < len(s)
    before = torch.ones(D_OUT, D_IN, dtype=torch.float64)
    started = replace(state, base={"l": before})
    _, _, W = run(S.Florist(), started, sent)
    np.testing.assert_allclose(W, 1 + (U[:, :p] * s[:p]) @ Vh[:p], atol=1e-12)
    with pytest.raises(InputError, match=r"strategy\.threshold"):
        S.Florist(threshold=0.0)


def test_ilora_is_the_qr_of_the_dense_mean_product():
    *_, As, Bs, state, sent = case(shared_A=False)
    new_A, new_B, _ = run(S.ILora(), state, sent)
    Q, upper = np.linalg.qr(product(As, Bs))
    sign = np.sign(np.diag(upper))[:R]
    np.testing.assert_allclose(new_B, Q[:, :R] * sign, atol=1e-11)
    np.testing.assert_allclose(new_A, sign[:, None] * upper[:R], atol=1e-11)
    best = run(S.FlexLora(), state, sent)
    lost = [np.linalg.norm(b @ a - product(As, Bs)) for a, b, _ in ((new_A, new_B, 0), best)]
    assert lost[0] > lost[1]  # not the best of its rank, as the page says


def test_ilora_keeps_a_product_of_its_rank_and_of_fewer_components():
    A, _B, _, Bs, state, _ = case(shared_A=True)
    new_A, new_B, _ = run(S.ILora(), state, updates([A] * 3, Bs))
    np.testing.assert_allclose(new_B @ new_A, mean(Bs) @ A, atol=1e-12)
    one = updates([A[:1]], [Bs[0][:, :1]])
    new_A, new_B, _ = run(S.ILora(), state, [replace(one[0], weight=1.0)])
    np.testing.assert_allclose(new_B @ new_A, Bs[0][:, :1] @ A[:1], atol=1e-12)
    np.testing.assert_allclose(new_B.T @ new_B, np.eye(R), atol=1e-12)


def test_the_qr_of_a_pair_takes_more_components_than_the_matrix_has_rows():
    g = torch.Generator().manual_seed(0)
    A, B = (torch.randn(*s, generator=g, dtype=torch.float64) for s in ((9, 4), (3, 9)))
    Q, upper = np.linalg.qr((B @ A).numpy())
    found = qr(LowRank(A, B), 2)
    np.testing.assert_allclose(found.product().numpy(), Q[:, :2] @ upper[:2], atol=1e-12)


def dense_barycentre(covariances, weights):
    """The iteration on dense covariances, with matrix roots of scipy."""
    S = np.eye(len(covariances[0]))
    for _ in range(500):
        half = scipy.linalg.sqrtm(S)
        inverse = np.linalg.inv(half)
        inner = sum(
            w * scipy.linalg.sqrtm(half @ C @ half)
            for w, C in zip(weights, covariances, strict=True)
        )
        S = inverse @ inner @ inner @ inverse
    return S


def test_bures_is_the_fixed_point_of_dense_covariances():
    rng = np.random.default_rng(5)
    A, Bs = rng.normal(size=(4, D_IN)), [rng.normal(size=(4, 4)) for _ in P]
    new_A, X, _ = run(S.Bures(tolerance=1e-12), wrap(A, Bs[0]), updates([A] * 3, Bs))
    expected = dense_barycentre([b @ b.T for b in Bs], P)
    np.testing.assert_allclose(X @ X.T, expected, rtol=1e-6, atol=1e-8)
    assert (new_A == A).all()
    near = X.T @ mean(Bs)  # nearest to the mean: the polar factor of X^T mean is the identity
    np.testing.assert_allclose(near, near.T, atol=1e-9)
    assert (np.linalg.eigvalsh(near) > 0).all()


def test_bures_has_roots_that_are_the_mean_of_roots_where_covariances_commute():
    rng = np.random.default_rng(6)
    Q = np.linalg.qr(rng.normal(size=(D_OUT, R)))[0]
    sizes = rng.uniform(1, 3, size=(3, R))
    turns = [np.array([[np.cos(x), -np.sin(x)], [np.sin(x), np.cos(x)]]) for x in (0, 1, 2)]
    A, Bs = rng.normal(size=(R, D_IN)), [(Q * s) @ t for s, t in zip(sizes, turns, strict=True)]
    _, X, _ = run(S.Bures(), wrap(A, Bs[0]), updates([A] * 3, Bs))
    np.testing.assert_allclose(X @ X.T, (Q * (P @ sizes) ** 2) @ Q.T, atol=1e-7)
    assert np.linalg.norm(X) > 1.01 * np.linalg.norm(mean(Bs))  # the plain mean is shorter
    with pytest.raises(InputError, match=r"strategy\.tolerance"):
        S.Bures(tolerance=0)


def test_bures_of_nothing_learnt_is_nothing():
    A, B, *_, state, _ = case(shared_A=True)
    assert not run(S.Bures(), state, updates([A] * 3, [0 * B] * 3))[1].any()


def test_lora_a2_averages_b_then_a():
    A, B, _As, Bs, state, _sent = case(shared_A=False)
    assert [S.LoraA2().trains_in(t) for t in (1, 2, 3)] == [("B",), ("A",), ("B",)]
    new_A, new_B, _ = run(S.LoraA2(), state, updates([A] * 3, Bs))
    np.testing.assert_allclose(new_A, A)
    np.testing.assert_allclose(new_B, B + sum(p * (b - B) for p, b in zip(P, Bs, strict=True)))
    for options, key in (
        ({"rank": 0}, "rank"),
        ({"probe": 1.0}, "probe"),
        ({"rank": True}, "rank"),
    ):
        with pytest.raises(InputError, match=rf"strategy\.{key}"):
            S.LoraA2(**options)


@pytest.mark.parametrize("kind", ["A", "B"])
def test_importance_is_the_norm_of_what_a_component_adds_to_the_product(kind):
    rng = np.random.default_rng(0)
    sizes = {"x": (4, 6, 3), "y": (5, 2, 2)}
    start, now = {}, {}
    for layer, (d_out, d_in, r) in sizes.items():
        start[f"{layer}.A"] = torch.tensor(rng.normal(size=(r, d_in)))
        start[f"{layer}.B"] = torch.tensor(rng.normal(size=(d_out, r)))
        old = start[f"{layer}.{kind}"]
        now[f"{layer}.{kind}"] = old + torch.tensor(rng.normal(size=tuple(old.shape)))
    now["head.weight"] = start["head.weight"] = torch.zeros(2)
    scores, dense = importance(start, now), []
    for layer, (_, _, r) in sizes.items():
        A, B = (start[f"{layer}.{k}"].numpy() for k in "AB")
        moved = (now[f"{layer}.{kind}"] - start[f"{layer}.{kind}"]).numpy()
        dA, dB = (moved, None) if kind == "A" else (None, moved)
        for i in range(r):
            part = np.outer(dB[:, i], A[i]) if kind == "B" else np.outer(B[:, i], dA[i])
            dense.append(np.linalg.norm(part))
    np.testing.assert_allclose(torch.cat(list(scores.values())).numpy(), dense, rtol=1e-12)
    kept = torch.cat(list(most_important(scores, 1).values())).numpy()
    assert set(np.flatnonzero(kept)) == set(np.argsort(dense)[-2:])  # 1 a layer, of all together


def test_selection_goes_back_and_then_moves_the_chosen_components_alone():
    A, B, *_ = case(shared_A=True)
    start = {"l.A": torch.tensor(A), "l.B": torch.tensor(B), "h": torch.zeros(1)}
    named = {"l.B": torch.nn.Parameter(torch.tensor(B)), "h": torch.nn.Parameter(torch.zeros(1))}
    optimizer = torch.optim.SGD(named.values(), lr=1.0, momentum=0.9)
    selection = Selection(1, 0.5, 4, start, named)

    def step(number, first, second):
        named["l.B"].grad = torch.tensor([[first, second]]).repeat(D_OUT, 1).double()
        named["h"].grad = torch.ones(1)
        optimizer.step()
        selection.after(number, optimizer)

    step(1, 1.0, 0.0)
    step(2, 0.0, 100.0 * np.linalg.norm(A[0]) / np.linalg.norm(A[1]))
    np.testing.assert_array_equal(named["l.B"].detach().numpy(), B)  # back, the head too
    assert named["h"].item() == 0
    step(3, 5.0, 7.0)
    step(4, 5.0, 7.0)
    moved = named["l.B"].detach().numpy() - B
    np.testing.assert_array_equal(moved[:, 0], 0)
    np.testing.assert_allclose(moved[:, 1], -(7 + 1.9 * 7))  # with no memory of the way undone
    np.testing.assert_allclose(named["h"].item(), -2.9)


def test_components_are_drawn_alike_evenly_and_anew():
    counts = np.zeros(6)
    for round in range(400):
        at = drawn(3, round, 1, 2, 6).tolist()
        assert at == sorted(set(at))
        assert len(at) == 2
        counts[at] += 1
    assert counts.sum() == 800
    assert abs(counts - 800 / 6).max() < 4 * np.sqrt(400 * (1 / 3) * (2 / 3))
    assert drawn(3, 7, 1, 6, 6).tolist() == [0, 1, 2, 3, 4, 5]
    assert drawn(3, 7, 1, 2, 6).tolist() == drawn(3, 7, 1, 2, 6).tolist()
    others = [drawn(k, 7, c, 2, 6).tolist() for k in (3, 4) for c in range(9)]
    assert len({tuple(at) for at in others}) > 5


def test_folding_leaves_the_model_what_it_is():
    rng = np.random.default_rng(0)
    A, B = torch.tensor(rng.normal(size=(4, D_IN))), torch.tensor(rng.normal(size=(D_OUT, 4)))
    W = torch.tensor(rng.normal(size=(D_OUT, D_IN)))
    for base in ({}, {"l": W}):
        state = AdapterState({"l": LowRank(A, B), "low": LowRank(A[:2], B[:, :2])}, {}, 5, base)
        folded = fold(state, 9, 2, 2)
        at = drawn(9, 5, 2, 2, 4)
        assert torch.equal(folded.factors["l"].A, A[at])
        assert torch.equal(folded.factors["l"].B, B[:, at])
        now = folded.base["l"] + folded.factors["l"].product()
        torch.testing.assert_close(now, B @ A + base.get("l", 0 * W))
        assert folded.factors["low"] is state.factors["low"]
        assert "low" not in folded.base


def test_fed_plora_averages_every_component_over_who_trained_it():
    rng = np.random.default_rng(4)
    A, B = rng.normal(size=(4, D_IN)), rng.normal(size=(D_OUT, 4))
    rule, ranks = S.FedPLora(seed=2), (1, 2, 1)
    As = [rng.normal(size=(r, D_IN)) for r in ranks]
    Bs = [rng.normal(size=(D_OUT, r)) for r in ranks]
    new_A, new_B, _ = run(rule, wrap(A, B, 3), updates(As, Bs, 3))
    chosen = [drawn(rule.key, 3, k, r, 4).tolist() for k, r in enumerate(ranks)]
    left = 0
    for j in range(4):
        who = [k for k in range(3) if j in chosen[k]]
        if not who:
            left += 1
            row, column = A[j], B[:, j]
        else:
            share = P[who] / P[who].sum()
            at = [chosen[k].index(j) for k in who]
            row = sum(p * As[k][i] for p, k, i in zip(share, who, at, strict=True))
            column = sum(p * Bs[k][:, i] for p, k, i in zip(share, who, at, strict=True))
        np.testing.assert_allclose(new_A[j], row)
        np.testing.assert_allclose(new_B[:, j], column)
    assert 0 < left < 4  # the case has both kinds
    *_, As, Bs, state, sent = case(shared_A=False)
    for found, expected in zip(run(rule, state, sent), run(S.FedAvg(), state, sent), strict=True):
        np.testing.assert_allclose(found, expected, atol=1e-14)
