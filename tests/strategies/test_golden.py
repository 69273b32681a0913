"""Every strategy on a tiny case, against the formula written out with NumPy on dense matrices."""

import numpy as np
import pytest
import scipy.fft
import torch
from scipy.optimize import minimize

from fedsvd import strategies as S
from fedsvd.errors import InputError
from fedsvd.lowrank import AdapterState
from fedsvd.lowrank.pursuit import robust_pca
from fedsvd.lowrank.robust import geometric_median, rank_one
from fedsvd.lowrank.subgradient import robust_fit
from fedsvd.randomness import Purpose, torch_stream
from fedsvd.strategies.server import ServerOptimizer
from tests.strategies.cases import D_IN, D_OUT, P, R, case, mean, product, run, updates, wrap


def test_fedsvd_balanced_puts_the_root_on_both_sides():
    A, _B, _As, Bs, state, sent = case(shared_A=True)
    new_A, new_B, _ = run(S.FedSVD(split="balanced"), state, sent)
    _U, s, Vh = np.linalg.svd(mean(Bs) @ A)
    np.testing.assert_allclose(new_B @ new_A, mean(Bs) @ A, atol=1e-12)
    np.testing.assert_allclose(new_A @ new_A.T, np.diag(s[:R]), atol=1e-12)
    np.testing.assert_allclose(new_B.T @ new_B, np.diag(s[:R]), atol=1e-12)
    np.testing.assert_allclose(np.abs(new_A), np.sqrt(s[:R])[:, None] * np.abs(Vh[:R]), atol=1e-12)
    with pytest.raises(InputError, match=r"strategy\.split"):
        S.FedSVD(split="even")


def test_a_balanced_split_of_a_deficient_product_has_no_nan():
    zero = wrap(np.ones((R, D_IN)), np.zeros((D_OUT, R)))
    new_A, new_B, _ = run(S.FedSVD(split="balanced"), zero, [S.Update(0, 1.0, zero)])
    assert (new_A == 0).all()
    assert (new_B == 0).all()


def test_flexlora_is_the_best_approximation_of_the_mean_product():
    *_, As, Bs, state, sent = case(shared_A=False)
    new_A, new_B, _ = run(S.FlexLora(), state, sent)
    U, s, Vh = np.linalg.svd(product(As, Bs))
    np.testing.assert_allclose(new_B @ new_A, (U[:, :R] * s[:R]) @ Vh[:R], atol=1e-12)
    np.testing.assert_allclose(new_A @ new_A.T, np.eye(R), atol=1e-12)


def test_prism_retracts_the_mean_product_near_the_old_factors():
    A, B, As, Bs, state, sent = case(shared_A=False)
    new_A, new_B, _ = run(S.Prism(), state, sent)
    U, s, Vh = np.linalg.svd(product(As, Bs))
    np.testing.assert_allclose(new_B @ new_A, (U[:, :R] * s[:R]) @ Vh[:R], atol=1e-12)
    # Balanced: (B, A) = (U S^1/2 Q, Q^T S^1/2 V^T), Q the nearest to the old ones.
    root = np.sqrt(s[:R])
    bal_B, bal_A = U[:, :R] * root, root[:, None] * Vh[:R]
    left, _, right = np.linalg.svd(bal_B.T @ B + bal_A @ A.T)
    np.testing.assert_allclose(new_B, bal_B @ left @ right, atol=1e-12)
    np.testing.assert_allclose(new_A, (left @ right).T @ bal_A, atol=1e-12)


@pytest.mark.parametrize("oversampling", [None, 0, 4])
def test_fedask_of_b_alone_is_fedsvd_with_the_balanced_split(oversampling):
    A, _, _As, Bs, state, sent = case(shared_A=True)
    new_A, new_B, _ = run(S.FedAsk(oversampling, seed=5), state, sent)
    _U, s, Vh = np.linalg.svd(mean(Bs) @ A)
    np.testing.assert_allclose(new_B @ new_A, mean(Bs) @ A, atol=1e-11)
    np.testing.assert_allclose(new_A @ new_A.T, np.diag(s[:R]), atol=1e-11)
    np.testing.assert_allclose(np.abs(new_A), np.sqrt(s[:R])[:, None] * np.abs(Vh[:R]), atol=1e-11)
    svd_A, svd_B, _ = run(S.FedSVD(split="balanced"), state, sent)
    sign = np.sign((svd_A * new_A).sum(1))
    np.testing.assert_allclose(sign[:, None] * new_A, svd_A, atol=1e-11)
    np.testing.assert_allclose(sign * new_B, svd_B, atol=1e-11)


def test_fedask_of_a_and_b_is_the_best_approximation_with_enough_columns():
    *_, As, Bs, state, sent = case(shared_A=False)
    U, s, Vh = np.linalg.svd(product(As, Bs))
    best = (U[:, :R] * s[:R]) @ Vh[:R]
    for oversampling in (None, 2 * R):  # (K' - 1) r of three clients
        new_A, new_B, _ = run(S.FedAsk(oversampling, seed=5), state, sent)
        np.testing.assert_allclose(new_B @ new_A, best, atol=1e-11)
    new_A, new_B, _ = run(S.FedAsk(1, seed=5), state, sent)
    assert np.linalg.norm(new_B @ new_A - best) > 1e-3
    # The default draws no more than it needs: one A for all clients needs none.
    pair = state.factors["l"]
    same = [
        S.Update(u.client, u.weight, state.update({"l.B": u.state.factors["l"].B})) for u in sent
    ]
    assert S.FedAsk()._more(pair, same, "l") == 0
    assert S.FedAsk()._more(pair, sent, "l") == 2 * R


def test_fedask_follows_its_two_stages_where_the_sketch_is_not_exact():
    *_, As, Bs, state, sent = case(shared_A=False)
    new_A, new_B, _ = run(S.FedAsk(1, seed=5), state, sent)
    stream = torch_stream(5, Purpose.SKETCH, 1, "l")
    O = torch.randn(D_IN, R + 1, generator=stream, dtype=torch.float64).numpy()  # noqa: E741
    Q = np.linalg.qr(product(As, Bs) @ O)[0]
    U, s, Vh = np.linalg.svd(Q.T @ product(As, Bs), full_matrices=False)
    np.testing.assert_allclose(new_B @ new_A, Q @ (U[:, :R] * s[:R]) @ Vh[:R], atol=1e-11)


def test_fedgsa_projects_on_the_leading_eigenvectors_of_the_mean_projector():
    A, _, As, Bs, state, sent = case(shared_A=True)
    new_A, new_B, _ = run(S.FedGsa(), state, sent)
    bases = [np.linalg.svd(b @ A)[0][:, :R] for b in Bs]
    Ug = np.linalg.eigh(mean([u @ u.T for u in bases]))[1][:, -R:]
    expected = Ug @ (Ug.T @ product(As, Bs))
    np.testing.assert_allclose(new_B @ new_A, expected, atol=1e-11)
    np.testing.assert_allclose(new_A @ new_A.T, np.eye(R), atol=1e-11)
    assert np.linalg.norm(expected - product(As, Bs)) > 1e-3


def test_fedgsa_of_one_client_is_fedsvd():
    A, _, _, Bs, state, _ = case(shared_A=True)
    sent = [S.Update(0, 1.0, wrap(A, Bs[0]))]
    np.testing.assert_allclose(run(S.FedGsa(), state, sent)[0], run(S.FedSVD(), state, sent)[0])
    np.testing.assert_allclose(run(S.FedGsa(), state, sent)[1], run(S.FedSVD(), state, sent)[1])


def test_fedgsa_takes_clients_that_have_learnt_nothing():
    A, _, _, Bs, state, _ = case(shared_A=True)
    sent = updates([A] * 3, [np.zeros_like(Bs[0]), Bs[1], np.zeros_like(Bs[0])])
    new_A, new_B, _ = run(S.FedGsa(), state, sent)
    np.testing.assert_allclose(new_B @ new_A, 0.3 * Bs[1] @ A, atol=1e-11)


def test_robust_pca_recovers_a_low_rank_and_a_sparse_part():
    rng = np.random.default_rng(0)
    L = np.outer(rng.normal(size=80), rng.normal(size=40))
    Sp = np.zeros_like(L)
    spots = rng.random(L.shape) < 0.05
    Sp[spots] = 10 * rng.choice([-1.0, 1.0], spots.sum())
    found_L, found_S = robust_pca(torch.tensor((L + Sp).T), steps=2000)
    np.testing.assert_allclose(found_L.mT.numpy(), L, atol=1e-3)
    np.testing.assert_allclose(found_S.mT.numpy(), Sp, atol=1e-3)


def test_robust_pca_is_at_the_minimum_of_its_objective():
    rng = np.random.default_rng(1)
    M = rng.normal(size=(30, 1)) + 0.3 * rng.normal(size=(30, 5))

    def cost(L):
        return np.linalg.svd(L)[1].sum() + np.abs(M - L).sum() / np.sqrt(30)

    L = robust_pca(torch.tensor(M.T))[0].mT.numpy()
    for size in (1.0, 1e-1, 1e-2, 1e-3):
        for _ in range(200):
            assert cost(L + size * rng.normal(size=M.shape)) > cost(L) * (1 - 1e-5)
    # Convex, so no better elsewhere: neither all of M nor nothing of it.
    assert cost(L) < min(cost(M), cost(0 * M))


def test_fedrpca_is_the_mean_plus_what_the_sparse_part_is_scaled_by():
    A, B, As, Bs, state, sent = case(shared_A=False)
    new_A, new_B, _ = run(S.FedRpca(scale=3.0), state, sent)
    for new, old, xs in ((new_A, A, As), (new_B, B, Bs)):
        M = np.stack([(x - old).ravel() for x in xs], axis=1)
        L, Sp = (x.mT.numpy() for x in robust_pca(torch.tensor(M.T)))
        np.testing.assert_allclose(L + Sp, M, atol=1e-12)
        np.testing.assert_allclose((new - old).ravel(), (L + 3 * Sp) @ P, atol=1e-12)
    plain = run(S.FedRpca(scale=1.0), state, sent)
    np.testing.assert_allclose(plain[0], mean(As), atol=1e-12)


def test_fedrpca_of_noise_is_fedavg_with_a_server_rate_of_two():
    rng, p = np.random.default_rng(0), 1 / 6
    A, B = rng.normal(size=(4, 40)), rng.normal(size=(50, 4))
    control = ServerOptimizer("momentum", lr=2.0, beta1=0.0)
    for number, rate in ((6, 1.95), (1, 1.94)):  # and of one message, whatever is in it
        sent = [
            S.Update(
                k,
                1 / number,
                wrap(A + p * rng.normal(size=A.shape), B + p * rng.normal(size=B.shape)),
            )
            for k in range(number)
        ]
        state = wrap(A, B)
        twice = control.step(state, S.FedAvg().aggregate(state, sent)).factors["l"]
        found = S.FedRpca().aggregate(state, sent).factors["l"]
        for old, new, other in ((A, found.A, twice.A), (B, found.B, twice.B)):
            move, double = new.numpy() - old, other.numpy() - old
            assert 2 * (move * double).sum() / (double**2).sum() == pytest.approx(rate, abs=0.05)
            assert np.linalg.norm(move - double) < 0.08 * np.linalg.norm(double)


def test_geometric_median_minimises_the_sum_of_distances_of_products():
    A, B, _As, Bs, state, sent = case(shared_A=True)
    new_A, new_B, _ = run(S.GeometricMedian(tolerance=1e-9), state, sent)
    assert (new_A == A).all()

    def cost(x):
        return sum(p * np.linalg.norm(x @ A - b @ A) for p, b in zip(P, Bs, strict=True))

    rng, best = np.random.default_rng(0), cost(new_B)
    for size in (1.0, 1e-1, 1e-2, 1e-3, 1e-4):
        for _ in range(300):
            assert cost(new_B + size * rng.normal(size=B.shape)) >= best - 1e-10
    assert cost(mean(Bs)) > best


def test_l21_minimises_the_norm_of_every_row_of_the_product():
    rng, p = np.random.default_rng(0), np.array([0.3, 0.2, 0.26, 0.24])
    A, B = rng.normal(size=(R, D_IN)), rng.normal(size=(12, R))
    A[1] *= 5  # so that norms of rows of B are not those of the product
    Bs = [B + rng.normal(size=B.shape) for _ in p]
    sent = [S.Update(k, float(w), wrap(A, b)) for (k, w), b in zip(enumerate(p), Bs, strict=True)]
    new_A, new_B, _ = run(S.L21(tolerance=1e-9), wrap(A, B), sent)
    assert (new_A == A).all()
    at_a_client = 0
    for i in range(len(B)):

        def cost(x, i=i):
            return sum(w * np.linalg.norm((x - b[i]) @ A) for w, b in zip(p, Bs, strict=True))

        found = minimize(cost, p @ [b[i] for b in Bs], method="Nelder-Mead", tol=1e-10)
        at = min(cost(b[i]) for b in Bs)  # where the cost has a kink
        assert cost(new_B[i]) <= min(found.fun, at) * (1 + 2e-5)  # it creeps past a client
        if at < found.fun * (1 + 1e-7):  # then exactly that client's row
            at_a_client += 1
            assert min(np.abs(new_B[i] - b[i]).max() for b in Bs) < 1e-12
    assert 0 < at_a_client < 12


def test_l21_of_four_corners_is_where_the_diagonals_cross():
    corners = np.array([[0.0, 0.0], [4.0, 0.0], [3.0, 3.0], [0.0, 2.0]])
    state = wrap(np.eye(2), np.zeros((2, 2)))  # the second row: a corner for each, moved by one
    Bs = [np.stack([c, corners[(k + 1) % 4] + 10]) for k, c in enumerate(corners)]
    sent = [S.Update(k, 0.25, wrap(np.eye(2), b)) for k, b in enumerate(Bs)]
    _, new_B, _ = run(S.L21(tolerance=1e-9), state, sent)
    cross = np.array([4 / 3, 4 / 3])  # y = x and x + 2 y = 4
    np.testing.assert_allclose(new_B, [cross, cross + 10], atol=1e-6)


def test_l21_leaves_a_client_out_of_the_rows_that_it_spoils_alone():
    rng = np.random.default_rng(1)
    A, B = rng.normal(size=(R, D_IN)), rng.normal(size=(D_OUT, R))
    Bs = [B + 0.1 * rng.normal(size=B.shape) for _ in range(5)]
    kept = run(S.L21(), wrap(A, B), [S.Update(k, 0.2, wrap(A, b)) for k, b in enumerate(Bs)])[1]
    Bs[2][0] += 1e6
    sent = [S.Update(k, 0.2, wrap(A, b)) for k, b in enumerate(Bs)]
    new = run(S.L21(), wrap(A, B), sent)[1]
    np.testing.assert_allclose(new[1:], kept[1:], atol=1e-12)
    assert np.abs(new[0] - B[0]).max() < 0.3
    # With one norm for a client, what it sends in its sound rows counts for nothing any more.
    whole = run(S.GeometricMedian(), wrap(A, B), sent)[1]
    Bs[2][1:] += 0.2
    sent[2] = S.Update(2, 0.2, wrap(A, Bs[2]))
    assert np.abs(run(S.GeometricMedian(), wrap(A, B), sent)[1] - whole).max() < 1e-4
    assert np.abs(run(S.L21(), wrap(A, B), sent)[1] - new)[1:].max() > 0.01


FIT = {"init": 0.01, "step": 0.5, "decay": 0.98, "steps": 300}


def fitted(Xs, p, rank, **options):
    pair = robust_fit(torch.tensor(np.stack(Xs)), torch.tensor(p), rank, **{**FIT, **options})
    return pair.product().numpy()


def test_robust_fit_takes_the_steps_of_its_formula():
    rng, p = np.random.default_rng(0), np.array([0.2, 0.3, 0.5])
    Xs = [rng.normal(size=(6, 9)) for _ in p]
    U, s, Vh = np.linalg.svd(mean([np.sign(x) for x in Xs]))
    size = sorted(np.linalg.norm(x) for x in Xs)
    half = next(x for x in size if p[[np.linalg.norm(y) <= x for y in Xs]].sum() >= 0.5)
    root = np.sqrt(0.01 * half * s[:4] / np.linalg.norm(s[:4]))
    B, A = U[:, :4] * root, root[:, None] * Vh[:4]
    np.testing.assert_allclose(np.linalg.norm(B @ A), 0.01 * half)
    for t in range(25):
        np.testing.assert_allclose(fitted(Xs, p, 4, steps=t), B @ A, atol=1e-10)
        G = np.zeros((6, 9))
        for w, x in zip(p, Xs, strict=True):
            for i in range(6):
                for j in range(9):
                    G[i, j] += w * np.sign(B[i] @ A[:, j] - x[i, j])
        eta = 0.5 * 0.98**t / np.sqrt(54)
        B, A = B - eta * G @ A.T, A - eta * B.T @ G


def test_robust_fit_of_full_rank_comes_near_the_entrywise_median():
    """Without a limit on the rank that is the minimiser."""
    rng = np.random.default_rng(0)
    Xs = [rng.normal(size=(12, 5)) for _ in range(3)]
    p = np.full(3, 1 / 3)

    def cost(Z):
        return np.abs(Z - Xs).sum() / 3

    best = cost(np.median(Xs, axis=0))
    found = cost(fitted(Xs, p, 5, decay=0.995, steps=1500))
    assert best <= found < 1.02 * best
    assert found < cost(np.mean(Xs, axis=0))


@pytest.mark.parametrize("scale", [1e-6, 1.0, 1e6])
@pytest.mark.parametrize("rank", [2, 4])
def test_robust_fit_recovers_a_low_rank_matrix_from_gross_errors(rank, scale):
    rng = np.random.default_rng(0)
    X = scale * rng.normal(size=(30, 2)) @ rng.normal(size=(2, 40))
    Xs = []
    for _ in range(4):  # a fifth of the entries of each client, so that many have half bad values
        Xs.append(np.where(rng.random(X.shape) < 0.2, X + 100 * scale, X))
    Xs.append(-50 * X)  # and a whole client
    p = np.full(5, 0.2)

    def off(Z):
        return np.linalg.norm(Z - X) / np.linalg.norm(X)

    assert off(fitted(Xs, p, rank)) < (0.02 if rank == 2 else 0.12)
    assert off(np.median(Xs, axis=0)) > 5
    assert off(sum(Xs) / 5) > 9


def test_robust_lowrank_adds_the_fit_of_the_moves_and_cuts_to_the_rank():
    A, B, As, Bs, state, sent = case(shared_A=False)
    new_A, new_B, _ = run(S.RobustLowRank(over=2), state, sent)
    moves = [b @ a - B @ A for a, b in zip(As, Bs, strict=True)]
    U, s, Vh = np.linalg.svd(B @ A + fitted(moves, P, 2 * R))
    np.testing.assert_allclose(new_B @ new_A, (U[:, :R] * s[:R]) @ Vh[:R], atol=1e-9)
    np.testing.assert_allclose(new_A @ new_A.T, np.eye(R), atol=1e-12)


def test_robust_lowrank_stays_where_half_of_the_weight_does_not_move():
    *_, As, Bs, state, _ = case(shared_A=False)
    head = torch.arange(3.0).double()
    state = AdapterState(state.factors, {"head.bias": head}, 1)
    far = AdapterState(wrap(As[0], Bs[0]).factors, {"head.bias": head + 9}, 1)
    sent = [S.Update(0, 0.3, state), S.Update(1, 0.3, state), S.Update(2, 0.4, far)]
    assert S.RobustLowRank().aggregate(state, sent).digest() == state.digest()


@pytest.mark.parametrize("size", [1e2, 1e6, 1e10])
def test_geometric_median_of_points_with_one_far_away_stays_near_the_others(size):
    rng = np.random.default_rng(0)
    X = rng.normal(size=(7, 20))
    X[3] = size * rng.normal(size=20)
    w = geometric_median(torch.tensor(X @ X.T), torch.full((7,), 1 / 7).double(), 1e-6).numpy()
    assert np.linalg.norm(w @ X) < 6


def test_rsvd_dpd_fits_a_rank_one_matrix_through_gross_errors():
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=60), 1 + 0.3 * rng.normal(size=9)
    X = np.outer(a, b) + 0.01 * rng.normal(size=(60, 9))
    bad = rng.random(X.shape) < 0.1
    spoilt = np.where(bad, X + 30, X)
    found_a, found_b = rank_one(torch.tensor(spoilt), torch.full((9,), 1 / 9).double(), 0.3, 1e-8)
    fit = np.outer(found_a.numpy(), found_b.numpy())
    U, s, Vh = np.linalg.svd(spoilt)
    plain = s[0] * np.outer(U[:, 0], Vh[0])
    assert np.abs(fit - np.outer(a, b)).max() < 0.06
    assert np.abs(plain - np.outer(a, b)).max() > 3


def test_rsvd_dpd_stays_near_honest_clients_where_the_mean_does_not():
    rng = np.random.default_rng(2)
    A, B, step = (
        rng.normal(size=(R, D_IN)),
        rng.normal(size=(D_OUT, R)),
        rng.normal(size=(D_OUT, R)),
    )
    Bs = [B + step + 0.01 * rng.normal(size=B.shape) for _ in range(5)]
    Bs[2] = B - 50 * step
    state = wrap(A, B)
    sent = [S.Update(k, 0.2, wrap(A, b)) for k, b in enumerate(Bs)]
    _, robust, _ = run(S.RsvdDpd(), state, sent)
    assert np.abs(robust - (B + step)).max() < 0.05
    assert np.abs(run(S.FFA(), state, sent)[1] - (B + step)).max() > 1


@pytest.mark.parametrize("tail", ["drop", "fold"])
def test_refresh_keeps_the_leading_directions_and_brings_new_ones(tail):
    A, _B, As, Bs, state, sent = case(shared_A=True)
    new_A, new_B, W = run(S.FedSvdRefresh(keep=1, tail=tail, seed=4), state, sent)
    G = product(As, Bs)
    U, s, Vh = np.linalg.svd(G)
    first = s[0] * np.outer(U[:, 0], Vh[0])
    np.testing.assert_allclose(new_B @ new_A, first, atol=1e-11)
    np.testing.assert_allclose(W, G - first if tail == "fold" else 0.0, atol=1e-11)
    np.testing.assert_allclose(new_A @ new_A.T, np.eye(R), atol=1e-12)
    assert (new_B[:, 1] == 0).all()
    inside = np.linalg.qr(A.T)[0]
    assert np.linalg.norm(new_A[1] - inside @ (inside.T @ new_A[1])) > 0.1  # a new direction
    other = run(S.FedSvdRefresh(keep=1, seed=5), state, sent)[0]
    assert np.abs(other[1] - new_A[1]).max() > 0.01


def test_refresh_by_energy():
    A = np.eye(3, D_IN)
    B = np.zeros((D_OUT, 3))
    B[[0, 1, 2], [0, 1, 2]] = [2.0, 1.0, 0.5]  # shares of energy: 4, 1, 0.25 of 5.25
    state = wrap(A, B)
    for energy, kept in ((0.7, 1), (0.8, 2), (0.95, 2), (0.96, 3), (1.0, 3)):
        _new_A, new_B, _ = run(S.FedSvdRefresh(energy=energy), state, [S.Update(0, 1.0, state)])
        assert (np.abs(new_B).sum(0) > 0).sum() == kept


@pytest.mark.parametrize("tail", ["drop", "fold"])
def test_dct_takes_the_columns_that_the_mean_aligns_with_most(tail):
    _A, _B, As, Bs, state, sent = case(shared_A=True)
    new_A, new_B, W = run(S.FedSvdDct(tail=tail), state, sent)
    Q = scipy.fft.dct(np.eye(D_IN), type=2, norm="ortho", axis=1)  # rows: the transforms of e_n
    G = product(As, Bs)
    chosen = np.sort(np.argsort(-np.abs(G @ Q).sum(0))[:R])
    np.testing.assert_allclose(new_A, Q[:, chosen].T, atol=1e-12)
    np.testing.assert_allclose(new_B, G @ Q[:, chosen], atol=1e-12)
    left = G - G @ Q[:, chosen] @ Q[:, chosen].T
    np.testing.assert_allclose(W, left if tail == "fold" else 0.0, atol=1e-12)


def test_flora_folds_the_mean_product_and_starts_again():
    A, B, As, Bs, state, sent = case(shared_A=False)
    new_A, new_B, W = run(S.Flora(seed=1), state, sent)
    np.testing.assert_allclose(W, product(As, Bs), atol=1e-12)
    assert (new_B == 0).all()
    assert np.abs(new_A).max() <= 1 / np.sqrt(D_IN)
    assert np.abs(new_A - A).max() > 0.01
    again = run(S.Flora(seed=1), wrap(A, B, round=2), sent)[0]
    assert np.abs(again - new_A).max() > 0.01  # another draw in another round


def test_fedex_puts_the_residual_of_the_means_into_the_base():
    *_, As, Bs, state, sent = case(shared_A=False)
    new_A, new_B, W = run(S.FedEx(), state, sent)
    np.testing.assert_allclose(new_A, mean(As), atol=1e-12)
    np.testing.assert_allclose(new_B, mean(Bs), atol=1e-12)
    np.testing.assert_allclose(W, product(As, Bs) - mean(Bs) @ mean(As), atol=1e-12)
    second = S.FedEx().aggregate(S.FedEx().aggregate(state, sent), sent)
    np.testing.assert_allclose(second.base["l"].numpy(), 2 * W, atol=1e-12)


def test_rolora_and_fedsa_average_what_they_are_sent():
    A, B, As, Bs, state, _ = case(shared_A=False)
    np.testing.assert_allclose(run(S.RoLora(), state, updates([A] * 3, Bs))[1], mean(Bs))
    assert S.RoLora().trains_in(1) == ("B",)
    assert S.RoLora().trains_in(2) == ("A",)
    new_A, new_B, _ = run(S.FedSa(), state, updates(As, [B] * 3))
    np.testing.assert_allclose(new_A, mean(As))
    np.testing.assert_allclose(new_B, B, atol=1e-12)
    with pytest.raises(InputError, match=r"strategy\.head"):
        S.FedSa(head="frozen")


def test_fedsb_means_r_and_with_it_the_clients_updates():
    rng = np.random.default_rng(3)
    B, A, Rs = rng.normal(size=(D_OUT, R)), rng.normal(size=(R, D_IN)), rng.normal(size=(3, R, R))
    heads = rng.normal(size=(3, 2, 4))
    states = [
        AdapterState({}, {"l.R": torch.tensor(r), "head.weight": torch.tensor(h)}, 1)
        for r, h in zip(Rs, heads, strict=True)
    ]
    sent = [S.Update(k, float(P[k]), state) for k, state in enumerate(states)]
    new = S.FedSb().aggregate(states[0], sent)
    np.testing.assert_allclose(new.extra["l.R"].numpy(), mean(Rs), atol=1e-12)
    np.testing.assert_allclose(new.extra["head.weight"].numpy(), mean(heads), atol=1e-12)
    exact = mean([B @ r @ A for r in Rs])
    np.testing.assert_allclose(B @ new.extra["l.R"].numpy() @ A, exact, atol=1e-12)


@pytest.mark.parametrize("name", ["momentum", "adam", "yogi"])
def test_server_optimisers_follow_their_recursions(name):
    server = ServerOptimizer(name, lr=0.1, beta1=0.8, beta2=0.9, tau=0.01)
    state, m, v = wrap(np.ones((R, D_IN)), np.ones((D_OUT, R))), 0.0, 0.01**2
    rng, x = np.random.default_rng(0), np.ones((D_OUT, R))
    for _ in range(3):
        target = rng.normal(size=(D_OUT, R))
        mean_state = state.update({"l.B": torch.tensor(target)})
        state = server.step(state, mean_state)
        d = target - x
        if name == "momentum":
            m = 0.8 * m + d
            x = x + 0.1 * m
        else:
            m = 0.8 * m + 0.2 * d
            v = 0.9 * v + 0.1 * d**2 if name == "adam" else v - 0.1 * d**2 * np.sign(v - d**2)
            x = x + 0.1 * m / (np.sqrt(v) + 0.01)
        np.testing.assert_allclose(state.factors["l"].B.numpy(), x, atol=1e-12)
    assert (state.factors["l"].A == 1).all()
    assert all(key.endswith("l.B") for key in state.memory)


def follow_mfac(server, rounds, moves):
    """Apply `server` to random means; return what it makes of B and A, and of them by NumPy."""
    rng = np.random.default_rng(0)
    state = wrap(rng.normal(size=(R, D_IN)), rng.normal(size=(D_OUT, R)))
    x = {n: t.numpy().copy() for n, t in state.tensors().items()}
    rows, v, found = [], {n: 0 * x[n] for n in x}, []
    for number in range(rounds):
        trains = moves(number)
        target = {n: rng.normal(size=x[n].shape) for n in trains}
        state = server.step(state, state.update({n: torch.tensor(t) for n, t in target.items()}))
        rows.append({n: target[n] - x[n] if n in trains else 0 * x[n] for n in x})
        last = rows[-server.window :]
        G = np.stack([np.concatenate([row[n].ravel() for n in trains]) for row in last])
        F = server.damping * np.eye(G.shape[1]) + G.T @ G / server.window  # dense
        step = np.split(np.linalg.inv(F) @ G[-1], np.cumsum([x[n].size for n in trains])[:-1])
        for n, part in zip(trains, step, strict=True):
            v[n] = server.beta1 * v[n] + (1 - server.beta1) * part.reshape(x[n].shape)
            x[n] = x[n] + server.lr * v[n]
        found.append(({n: t.numpy() for n, t in state.select(("A", "B")).items()}, dict(x)))
    return state, found


@pytest.mark.parametrize("momentum", [0.0, 0.8])
@pytest.mark.parametrize(
    "moves",
    [lambda i: ["l.A", "l.B"], lambda i: [["l.B"], ["l.A", "l.B"], ["l.A"]][i % 3]],
    ids=["both", "in turn"],
)
def test_mfac_steps_along_the_dense_inverse_of_the_empirical_fisher(moves, momentum):
    server = ServerOptimizer("mfac", lr=0.01, beta1=momentum, window=4, damping=0.02)
    state, found = follow_mfac(server, 7, moves)
    for ours, theirs in found:
        for name, value in theirs.items():
            np.testing.assert_allclose(ours[name], value, rtol=1e-10, atol=1e-12)
    kinds = {"g", "m"} if momentum else {"g"}
    assert set(state.memory) == {f"{k}.l.{n}" for k in kinds for n in "AB"}
    assert state.memory["g.l.A"].shape == (4, R, D_IN)


def test_mfac_by_hand_and_with_almost_no_damping():
    # One row g = (3, 4): F^-1 g = g / (damping + |g|^2).
    old = wrap(np.zeros((1, 2)), np.zeros((1, 1)))
    mean_state = old.update({"l.A": torch.tensor([[3.0, 4.0]]).double()})
    server = ServerOptimizer("mfac", lr=1.0, beta1=0.0, window=1, damping=5.0)
    np.testing.assert_allclose(server.step(old, mean_state).factors["l"].A, [[0.1, 4 / 30]])
    # Of a window of 4 with 3 rows still 0, F = damping I + g g^T / 4; at 1e-14 no digit is lost.
    server = ServerOptimizer("mfac", lr=1.0, beta1=0.0, window=4, damping=1e-14)
    new = server.step(old, mean_state)
    np.testing.assert_allclose(new.factors["l"].A, [[12 / 25, 16 / 25]], rtol=1e-12)
    assert not new.factors["l"].B.any()
    assert set(new.memory) == {"g.l.A"}


def test_mfac_goes_on_from_its_memory_in_single_precision():
    server = ServerOptimizer("mfac", lr=0.01, window=3, damping=1e-3)
    state = wrap(np.ones((R, D_IN), np.float32), np.ones((D_OUT, R), np.float32))
    for k in range(5):
        state = server.step(state, state.update({"l.B": state.factors["l"].B * (0.9 + 0.05 * k)}))
        state = AdapterState.from_tensors(state.tensors(), state.round + 1)
    assert {t.dtype for t in state.tensors().values()} == {torch.float32}
    assert state.memory["g.l.B"].shape == (3, D_OUT, R)


def test_momentum_without_memory_at_rate_one_is_the_mean():
    *_, state, sent = case(shared_A=False)
    mean_state = S.FedAvg().aggregate(state, sent)
    new = ServerOptimizer("momentum", lr=1.0, beta1=0.0).step(state, mean_state)
    torch.testing.assert_close(new.factors["l"].B, mean_state.factors["l"].B)


def test_a_rules_own_memory_stays_beside_that_of_its_server_optimiser():
    *_, state, sent = case(shared_A=False)
    mean_state = S.FedAvg().aggregate(state, sent).update({"memory.own": torch.ones(2)})
    new = ServerOptimizer("momentum", lr=1.0).step(state, mean_state)
    assert set(new.memory) == {"own", "m.l.A", "m.l.B"}
    assert set(ServerOptimizer("momentum", lr=1.0).step(new, mean_state).memory) == set(new.memory)
