"""Clients of different ranks and rules that read public data, against formulas in NumPy."""

import numpy as np
import pytest
import torch

from fedsvd import strategies as S
from tests.strategies.cases import D_IN, D_OUT, R, case, mean, product, run, updates, wrap


def ranked(ranks, seed=3):
    """Clients' factors of these ranks."""
    rng = np.random.default_rng(seed)
    return [rng.normal(size=(r, D_IN)) for r in ranks], [rng.normal(size=(D_OUT, r)) for r in ranks]


def test_hetlora_weighs_padded_factors_by_the_size_of_their_product():
    _A, _B, _As, _Bs, state, _ = case(shared_A=False)
    As, Bs = ranked([1, 2, 2])
    new_A, new_B, _ = run(S.HetLora(gamma=1.0), state, updates(As, Bs))
    weights = np.array([np.linalg.norm(b @ a) for a, b in zip(As, Bs, strict=True)])  # without p_k
    weights /= weights.sum()
    As = [np.vstack([a, np.zeros((R - len(a), D_IN))]) for a in As]
    Bs = [np.hstack([b, np.zeros((D_OUT, R - b.shape[1]))]) for b in Bs]
    np.testing.assert_allclose(new_A, sum(w * a for w, a in zip(weights, As, strict=True)))
    np.testing.assert_allclose(new_B, sum(w * b for w, b in zip(weights, Bs, strict=True)))
    nothing = [np.zeros_like(b) for b in Bs]  # then all count alike
    new_A, _, _ = run(S.HetLora(gamma=1.0), state, updates(As, nothing))
    np.testing.assert_allclose(new_A, sum(As) / 3)


def test_hetlora_prunes_the_clients_whose_tail_shrank():
    A, B, _As, _Bs, state, _ = case(shared_A=False)
    shrunk = B * np.array([1.0, 0.5])
    rule = S.HetLora(gamma=0.5)
    new = rule.aggregate(state, updates([A, A, A], [B, shrunk, 2 * B]))
    assert rule.ranks_of(new) == {1: 1}
    assert S.HetLora(gamma=1.0).aggregate(state, updates([A] * 3, [shrunk] * 3)).memory == {}
    later = rule.aggregate(new, updates([A, A[:1], A], [9 * B, B[:, :1], 0.1 * B]))
    assert rule.ranks_of(later) == {1: 1, 2: 1}  # once pruned, pruned


def test_flora_and_flexlora_take_clients_of_any_rank():
    _A, _B, _As, _Bs, state, _ = case(shared_A=False)
    As, Bs = ranked([1, 2, 1])
    expected = product(As, Bs)
    _, B, W = run(S.Flora(), state, updates(As, Bs))
    np.testing.assert_allclose(W, expected, atol=1e-12)
    assert not B.any()
    new_A, new_B, _ = run(S.FlexLora(), state, updates(As, Bs))
    U, s, Vh = np.linalg.svd(expected)
    np.testing.assert_allclose(new_B @ new_A, (U[:, :R] * s[:R]) @ Vh[:R], atol=1e-12)


def test_flexlora_takes_fewer_components_than_it_keeps():
    _A, _B, _As, _Bs, state, _ = case(shared_A=False)
    (A1,), (B1,) = ranked([1])
    new = S.FlexLora().aggregate(state, [S.Update(0, 1.0, wrap(A1, B1))]).factors["l"]
    assert new.rank == R
    np.testing.assert_allclose(new.product().numpy(), B1 @ A1, atol=1e-12)
    np.testing.assert_allclose((new.A @ new.A.mT).numpy(), np.eye(R), atol=1e-12)  # all can train


class Target(S.PublicView):
    """Half the squared distance of B to a fixed matrix."""

    def __init__(self, B):
        self.B = torch.tensor(B)

    def gradients(self, state, kinds=None):
        apart = state.factors["l"].B - self.B
        zero = torch.zeros_like(state.factors["l"].A)
        return 0.5 * float(apart.square().sum()), {"l.B": apart, "l.A": zero}

    def weight_gradients(self, state):
        return {"l": state.factors["l"].product() - self.weight("l")}

    def weight(self, layer):
        return torch.tensor(np.random.default_rng(5).normal(size=(D_OUT, D_IN)))

    def moment(self, layer):
        return self.weight(layer).mT @ self.weight(layer)


def test_scaled_finds_the_coefficients_that_the_public_loss_asks_for():
    _A, B, _As, Bs, state, sent = case(shared_A=True)
    wanted = B + 0.7 * (Bs[0] - B) - 0.2 * (Bs[1] - B) + 0.4 * (Bs[2] - B)
    rule = S.Scaled(steps=400, lr=0.05)
    rule.public = Target(wanted)
    np.testing.assert_allclose(run(rule, state, sent)[1], wanted, atol=1e-4)
    one = S.Scaled(steps=1, lr=0.05)
    one.public = Target(mean(Bs))
    np.testing.assert_allclose(run(one, state, sent)[1], mean(Bs), atol=1e-12)  # p_k is best there


def test_refresh_takes_the_directions_in_which_public_texts_would_go_from_here():
    A, _B, _As, Bs, state, sent = case(shared_A=True)
    rule = S.FedSvdRefresh(keep=0, directions="gradients", tail="fold")
    rule.public = Target(Bs[0])
    new_A, new_B, _ = run(rule, state, sent)
    G = mean(Bs) @ A - rule.public.weight("l").numpy()
    V = np.linalg.svd(G)[2][:R]
    np.testing.assert_allclose(np.abs(np.sum(new_A * V, axis=1)), 1.0, atol=1e-9)
    assert not new_B.any()


@pytest.mark.parametrize("directions", ["leading", "trailing", "inputs"])
def test_refresh_takes_its_rows_from_the_list(directions):
    A, _B, _As, Bs, state, sent = case(shared_A=True)
    rule = S.FedSvdRefresh(keep=1, directions=directions)
    rule.public = Target(Bs[0])
    new_A, new_B, _ = run(rule, state, sent)
    W0 = rule.public.weight("l").numpy()
    V = np.linalg.svd(W0, full_matrices=False)[2]
    first = V[-1] if directions == "trailing" else V[0]
    kept = np.linalg.svd(mean(Bs) @ A)[2][0]
    rest = first - (first @ kept) * kept
    assert abs(new_A[1] @ rest) / np.linalg.norm(rest) == pytest.approx(1.0)
    assert not new_B[:, 1].any()
    # The next refresh goes on in the list.
    rule.keep = 0
    later = rule.aggregate(wrap(new_A, new_B, 2), updates([new_A] * 3, [new_B] * 3, 2))
    listed = np.linalg.eigh(W0.T @ W0)[1].T[::-1] if directions == "inputs" else V
    expected = listed[::-1][2:4] if directions == "trailing" else listed[2:4]
    np.testing.assert_allclose(np.abs(later.factors["l"].A.numpy()), np.abs(expected), atol=1e-6)
